"""Forward: typed structs, simulators' steps, controllers, losses, the rollout, small dense algebra.

Systems, controllers and losses are immutable structs (`structs`); generic functions (`generics`) choose their method by the
struct's type when they are compiled (`compiler`). Everything is generic over float32 and float64.
"""
