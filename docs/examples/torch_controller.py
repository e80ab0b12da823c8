"""A controller written in PyTorch, trained through our cart-pole. Variant M stops the gradient at the network's input."""

import torch

import stablebptt as sb
from stablebptt.interop.torch import rollout_loss


def train(variant="M", updates=200, steps=60):
    """Losses of Adam with clipped gradients."""
    torch.manual_seed(0)
    problem = sb.problem("cartpole", poles=2, steps=steps)
    policy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.003)
    x0 = torch.as_tensor(problem.sample(16, seed=0))
    losses = []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = rollout_loss(problem, policy, x0, variant)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for name in ("R", "M", "C"):
        found = train(name)
        print(f"{name}: loss {found[0]:.3f} -> {found[-1]:.3f}")
