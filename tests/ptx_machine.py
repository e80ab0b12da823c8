"""A machine for the compiled CUDA kernels where there is no device: PTX is translated to C and executed, thread by thread.

`install` puts a driver of our own (ptx_machine.c) in the place of libcuda, so that everything above it is the real thing:
Numba's typing, code and linking, the arguments, copies and launches. It then checks every access of every thread; see there.
"""

import ctypes
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = Path(tempfile.mkdtemp(prefix="ptx-machine-"))
SPECIAL = {"%tid.x": "T", "%ntid.x": "M->threads", "%ctaid.x": "M->x", "%ctaid.y": "M->y", "%nctaid.x": "M->nx"}
SPECIAL |= {"%nctaid.y": "M->ny", "%dynamic_smem_size": "M->shared_bytes", "%tid.y": "0", "%tid.z": "0", "%ctaid.z": "0"}
ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}

RUNTIME = """
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
typedef struct { unsigned x, y, nx, ny, threads, shared_bytes; char *shared, *parameters; jmp_buf failed; } machine;
typedef union { uint64_t u64, b64; int64_t s64; uint32_t u32, b32; int32_t s32; uint16_t u16, b16; int16_t s16; uint8_t u8, b8;
                int8_t s8; float f32; double f64; } word;
extern void *place(uint64_t, int, int, int, int);
extern char machine_error[];
extern void begin_launch(void), begin_block(void *, uint64_t), pass_barrier(void);
static void *at(machine *M, uint64_t a, int size, int writes, int thread) {
    void *p = place(a, size, size, writes, thread);
    if (!p) longjmp(M->failed, 1);
    return p;
}
static uint64_t f32(float x) { word w = {0}; w.f32 = x; return w.u64; }
static uint64_t f64(double x) { word w = {0}; w.f64 = x; return w.u64; }
"""

MAIN = """
#include <stdlib.h>
uint64_t issued;
int run(unsigned nx, unsigned ny, unsigned threads, unsigned shared_bytes, char *parameters) {
    machine m = {0, 0, nx, ny, threads, shared_bytes, aligned_alloc(256, (shared_bytes + 511) / 256 * 256), parameters};
    thread *all = calloc(threads, sizeof(thread));
    volatile int result = 0;
    begin_launch();
    if (setjmp(m.failed)) { free(all); free(m.shared); return 1; }
    for (m.y = 0; m.y < ny; m.y++)
        for (m.x = 0; m.x < nx; m.x++) {
            begin_block(m.shared, shared_bytes);
            memset(all, 0xff, threads * sizeof(thread));
            for (unsigned i = 0; i < threads; i++) all[i].pc = all[i].executed = 0;
            unsigned waiting = threads;
            for (int turn = 0; waiting; turn++) {
                waiting = 0;
                for (unsigned i = 0; i < threads; i++)
                    waiting += step(all + (turn % 2 ? threads - 1 - i : i), &m, turn % 2 ? threads - 1 - i : i);
                if (waiting && waiting < threads) { result = 2; waiting = 0; }
                for (unsigned i = 0, most = 0; i < threads; i++) { /* a warp issues what its busiest thread executes */
                    if (all[i].executed > most) most = all[i].executed;
                    all[i].executed = 0;
                    if (i % 32 == 31 || i == threads - 1) issued += most, most = 0;
                }
                pass_barrier();
            }
        }
    free(all);
    free(m.shared);
    return result;
}
"""


class Translator:
    """One kernel in PTX, as C."""

    def __init__(self, ptx):
        body = ptx[ptx.index(".entry") :]
        self.name = re.search(r"\.entry\s+(\S+?)\(", body).group(1)
        self.parameters = re.findall(r"\.param \.(\w+) (\S+?),?\n", body[: body.index("{")])
        self.constants = re.findall(r"^\.global \.align \d+ \.b8 (\w+)\[\d+\] = \{([^}]*)\};", ptx, re.MULTILINE)
        self.shared = re.findall(r"\.extern \.shared [^;]* (\w+)\[\];", ptx)
        self.static = re.findall(r"^\.shared", ptx, re.MULTILINE)
        assert not self.static, "static shared memory is not translated"
        self.lines = self._statements(body[body.index("{") + 1 : body.index("\n}")])
        self.registers, self.local, self.barriers = set(), {}, 0

    @staticmethod
    def _statements(body):
        body = re.sub(r"call[^;]*;", "call;", re.sub(r"//.*", "", body))
        lines = (line.strip() for line in body.splitlines())
        lines = (line for line in lines if line not in ("", "{", "}", ")"))
        return [line.rstrip(";").strip() for line in lines]

    def c_code(self):
        code = [self._line(line) for line in self.lines]
        code = [f"t->executed++; {c}" if c and not line.startswith("$") else c for line, c in zip(self.lines, code)]
        places = {}
        offset = 0
        for kind, name in self.parameters:
            size = int(re.sub(r"\D", "", kind)) // 8
            offset = -(-offset // size) * size
            places[name] = offset
            offset += size
        text = "\n".join(line for line in code if line)
        for name, where in places.items():
            text = text.replace(f"PARAMETER({name})", f"(M->parameters + {where})")
        self.sizes = [int(re.sub(r"\D", "", kind)) // 8 for kind, _ in self.parameters]
        self.places = list(places.values())
        local = "".join(f"char {name}[{size}] __attribute__((aligned(16)));" for name, size in self.local.items())
        fields = "".join(f"word {r};" for r in sorted(self.registers))
        constants = "\n".join(
            f"static const uint8_t {name}[] __attribute__((aligned(16))) = {{{values}}};" for name, values in self.constants
        )
        jumps = "".join(f"case {i}: goto resume_{i};" for i in range(1, self.barriers + 1))
        step = f"""
typedef struct {{ int pc; uint32_t carry, executed; {local} {fields} }} thread;
{constants}
static int step(thread *t, machine *M, int T) {{
    switch (t->pc) {{ case 0: break; {jumps} default: return 0; }}
{text}
    t->pc = -1; return 0;
}}"""
        return RUNTIME + step + MAIN

    def _value(self, text, kind):
        """An operand, read as a type."""
        text = text.strip()
        if text in SPECIAL:
            return f"(uint64_t){SPECIAL[text]}"
        if text.startswith("%"):
            return f"{self._register(text)}.{kind}"
        if re.fullmatch(r"0f[0-9A-Fa-f]{8}", text):
            return f"((word){{.u64 = 0x{text[2:]}ull}}).f32" if kind == "f32" else f"0x{text[2:]}u"
        if re.fullmatch(r"0d[0-9A-Fa-f]{16}", text):
            return f"((word){{.u64 = 0x{text[2:]}ull}}).f64" if kind == "f64" else f"0x{text[2:]}ull"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", text):
            return f"(({C_TYPES[kind]}){text}ll)"
        if text in self.shared:
            return "((uint64_t)0)"
        return f"((uint64_t){'t->' if text in self.local else ''}{text})"

    def _register(self, text):
        name = text.replace("%", "R_").replace(".", "_")
        self.registers.add(name)
        return f"t->{name}"

    def _address(self, text, space):
        inner = text.strip().strip("[]")
        base, _, shift = inner.partition("+")
        if space == "param":
            return f"PARAMETER({base})" + (f" + {shift}" if shift else "")
        address = self._value(base, "u64") + (f" + (int64_t)({shift})" if shift else "")
        return f"(uint64_t)M->shared + {address}" if space == "shared" else address

    def _set(self, target, kind, value):
        """A statement that writes a register; the rest of it becomes 0."""
        return f"{{ word w = {{0}}; w.{kind} = {value}; {self._register(target.strip())} = w; }}"

    def _line(self, line):
        if line.startswith((".reg", ".pragma", ".loc ", ".file", ".param", "st.param")) or "[retval" in line:
            return ""
        if line == "call":  # rare paths of the library are the only functions that are not compiled into their callers
            return 'strcpy(machine_error, "a function is called, which is not translated"); longjmp(M->failed, 1);'
        if line.startswith(".local"):
            name, size = re.search(r"(\w+)\[(\d+)\]", line).groups()
            self.local[name] = int(size)
            return ""
        if line.startswith("$"):
            return f"{line.strip(':').replace('$', 'L_')}:;"
        guard = re.match(r"@(!?)(%p\d+)\s+(.*)", line)
        if guard:
            test = ("!" if guard[1] else "") + f"({self._register(guard[2])}.u32 & 1)"
            return f"if ({test}) {{ {self._line(guard[3])} }}"
        operation, _, rest = line.replace("\t", " ").partition(" ")
        operands = [part.strip() for part in re.split(r",(?![^{]*\})", rest.strip())] if rest.strip() else []
        return self._operation(operation.strip().split("."), operands)

    def _operation(self, op, args):
        name, kind = op[0], op[-1]
        bits = int(re.sub(r"\D", "", kind) or 0)
        if name == "bra":
            return f"goto {args[0].replace('$', 'L_')};"
        if name == "ret":
            return "t->pc = -1; return 0;"
        if name in ("bar", "barrier"):
            self.barriers += 1
            return f"t->pc = {self.barriers}; return 1; resume_{self.barriers}:;"
        if name == "ld" and op[1] == "param":
            return self._set(args[0], kind, f"*(volatile {C_TYPES[kind]} *)({self._address(args[1], 'param')})")
        if name in ("ld", "st"):
            return self._memory(op, args, kind, bits)
        if name == "mov" and args[0].startswith("{"):
            low, high = args[0].strip("{}").split(",")
            value = self._value(args[1], "u64")
            return f"{{ uint64_t v = {value}; {self._set(low, 'b32', '(uint32_t)v')} {self._set(high, 'b32', 'v >> 32')} }}"
        if name == "mov" and args[1].startswith("{"):
            low, high = (self._value(part, "b32") for part in args[1].strip("{}").split(","))
            return self._set(args[0], kind, f"(uint64_t){low} | (uint64_t){high} << 32")
        if name == "mov":
            return self._set(args[0], "u32" if kind == "pred" else kind, self._value(args[1], "u32" if kind == "pred" else kind))
        if name == "cvta":
            base = "(uint64_t)M->shared + " if "shared" in op and "to" not in op else ""
            assert not ("to" in op and "shared" in op)
            return self._set(args[0], kind, base + self._value(args[1], kind))
        if name == "cvt":
            return self._convert(op, args)
        if name == "setp":
            return self._compare(op, args, kind)
        if kind == "pred":
            a = [f"({self._value(arg, 'u32')} & 1)" for arg in args[1:]]
            sign = {"and": " & ", "or": " | ", "xor": " ^ "}.get(name)
            return self._set(args[0], "u32", sign.join(a) if sign else f"!{a[0]}")
        if name == "selp":
            a, b, p = self._value(args[1], kind), self._value(args[2], kind), self._value(args[3], "u32")
            return self._set(args[0], kind, f"({p} & 1) ? {a} : {b}")
        if name in ("mad", "madc") and ("cc" in op or name == "madc"):
            a, b, c = (self._value(arg, "u32") for arg in args[1:])
            shift = " >> 32" if "hi" in op else ""
            carry = " + t->carry" if name == "madc" else ""
            total = f"{{ uint64_t s = (uint64_t)(uint32_t)(((uint64_t){a} * {b}){shift}) + {c}{carry};"
            return f"{total} {self._set(args[0], 'u32', '(uint32_t)s')} t->carry = s >> 32; }}"
        if name == "mul" and "wide" in op:
            wide = f"{kind[0]}{2 * bits}"
            a, b = (self._value(arg, kind) for arg in args[1:])
            return self._set(args[0], wide, f"({C_TYPES[wide]}){a} * {b}")
        if name in ("mul", "mad") and "hi" in op:
            a, b = (self._value(arg, kind) for arg in args[1:3])
            wide = ("unsigned " if kind[0] == "u" else "") + "__int128"
            more = f" + {self._value(args[3], kind)}" if name == "mad" else ""
            return self._set(args[0], kind, f"(({wide}){a} * {b} >> {bits}){more}")
        a = [self._value(arg, kind) for arg in args[1:]]
        return self._set(args[0], kind, self._formula(name, kind, bits, a, args))

    def _formula(self, name, kind, bits, a, args):
        single, real = "f" if kind == "f32" else "", kind.startswith("f")
        natural = f"uint{bits}_t"  # C leaves the overflow of signed numbers undefined
        if name in ("add", "sub", "mul"):
            sign = {"add": "+", "sub": "-", "mul": "*"}[name]
            return f"{a[0]} {sign} {a[1]}" if real else f"({natural}){a[0]} {sign} ({natural}){a[1]}"
        if name in ("div", "rem"):
            sign = "/" if name == "div" else "%"
            return f"{a[0]} {sign} {a[1]}" if real else f"({a[1]} ? {a[0]} {sign} {a[1]} : -1)"
        if name in ("fma", "mad"):
            return f"fma{single}({', '.join(a)})" if real else f"({natural}){a[0]} * ({natural}){a[1]} + ({natural}){a[2]}"
        if name in ("min", "max"):
            sign = "<" if name == "min" else ">"
            return f"f{name}{single}({a[0]}, {a[1]})" if real else f"({a[0]} {sign} {a[1]} ? {a[0]} : {a[1]})"
        if name in ("and", "or", "xor"):
            return f"{a[0]} { {'and': '&', 'or': '|', 'xor': '^'}[name]} {a[1]}"
        if name in ("shl", "shr"):
            n = self._value(args[2], "u32")
            rest = f"({a[0]} >> {bits - 1})" if name == "shr" and kind.startswith("s") else "0"
            return f"({n} >= {bits} ? {rest} : {a[0]} {'<<' if name == 'shl' else '>>'} {n})"
        if name == "bfi":
            at, length = self._value(args[3], "u32"), self._value(args[4], "u32")
            mask = f"((((uint64_t)1 << {length}) - 1) << {at})"
            return f"({a[1]} & ~{mask}) | (({a[0]} << {at}) & {mask})"
        if name == "copysign":
            return f"copysign{single}({a[1]}, {a[0]})"
        simple = {"neg": "-{}", "not": "~{}", "rcp": "1 / {}"}
        simple |= {"abs": f"fabs{single}({{}})", "sqrt": f"sqrt{single}({{}})", "ex2": f"exp2{single}({{}})"}
        if name in simple:
            return simple[name].format(a[0])
        raise NotImplementedError(f"{name}.{kind}")

    def _memory(self, op, args, kind, bits):
        space = next((s for s in ("shared", "global", "local") if s in op), "generic")
        width = 4 if "v4" in op else 2 if "v2" in op else 1
        size = width * bits // 8
        where, data = (args[1], args[0]) if op[0] == "ld" else (args[0], args[1])
        inner = where.strip("[]").partition("+")[0]
        address = self._address(where, space)
        unchecked = space == "local" or any(inner == name for name, _ in self.constants) or "nc" in op
        pointer = f"(void *)({address})" if unchecked else f"at(M, {address}, {size}, {int(op[0] == 'st')}, T)"
        parts = data.strip("{}").split(",")
        lines = [f"{{ {C_TYPES[kind]} *p = {pointer};"]
        for i, part in enumerate(parts):
            lines.append(self._set(part, kind, f"p[{i}]") if op[0] == "ld" else f"p[{i}] = {self._value(part, kind)};")
        return " ".join(lines) + " }"

    def _convert(self, op, args):
        target, source = op[-2], op[-1]
        value = self._value(args[1], source)
        rounding = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}.get(op[1])
        assert rounding or not source.startswith("f") or target.startswith("f")
        value = f"{rounding}({value})" if rounding else value
        return self._set(args[0], target, f"({C_TYPES[target]}){value}")

    def _compare(self, op, args, kind):
        how, (a, b) = op[1], (self._value(arg, kind) for arg in args[1:3])
        assert len(args) == 3
        if how in ORDERED:
            test = f"{a} {ORDERED[how]} {b}"
            if how == "ne" and kind.startswith("f"):
                test = f"({test} && {a} == {a} && {b} == {b})"
        elif how in ("nan", "num"):
            test = f"({a} != {a} || {b} != {b})" if how == "nan" else f"({a} == {a} && {b} == {b})"
        else:  # unordered: true for NaN
            test = f"(!({a} == {a} && {b} == {b}) || {a} {ORDERED[how[:-1]]} {b})"
        return self._set(args[0], "u32", test)


C_TYPES = {f"{letter}{bits}": f"{'' if letter == 's' else 'u'}int{bits}_t" for letter in "usb" for bits in (8, 16, 32, 64)}
C_TYPES |= {"f32": "float", "f64": "double"}


def compile_c(text, name):
    """A library of C code, loaded."""
    source, library = FOLDER / f"{name}.c", FOLDER / f"{name}.so"
    source.write_text(text)
    command = ["cc", "-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", "-mfma", str(source)]
    subprocess.run([*command, "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


class Machine:
    """Translated kernels, and the one that is being launched."""

    def __init__(self, driver):
        self.driver, self.known, self.current = driver, {}, None
        self.launches = self.total = self.issued = 0
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 4, ctypes.POINTER(ctypes.c_void_p))
        self.callback = kind(self.run)
        driver.register_machine(self.callback)

    def translated(self, ptx):
        key = hashlib.sha256(ptx.encode()).hexdigest()[:16]
        if key not in self.known:
            kernel = Translator(ptx)
            self.known[key] = (kernel, compile_c(kernel.c_code(), key))
        return self.known[key]

    def run(self, nx, ny, threads, shared_bytes, parameters):
        try:
            kernel, library = self.translated(self.current)
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
            return 1
        buffer = ctypes.create_string_buffer(kernel.places[-1] + 16)
        for number, (where, size) in enumerate(zip(kernel.places, kernel.sizes)):
            ctypes.memmove(ctypes.addressof(buffer) + where, parameters[number], size)
        self.launches += 1
        failed = library.run(nx, ny, threads, shared_bytes, buffer)
        self.issued = ctypes.c_uint64.in_dll(library, "issued").value
        ctypes.c_uint64.in_dll(library, "issued").value = 0
        self.total += self.issued
        self.problem = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self.driver, "machine_error"))).decode()
        if failed == 2:
            self.problem = "some threads of a block end while others wait at a barrier"
        return 1 if failed else 0


def install():
    """Take the place of the driver; returns the machine. Before anything imports numba.cuda."""
    library = FOLDER / "libcuda.so.1"
    command = ["cc", "-O1", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(HERE / "ptx_machine.c"), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    machine = Machine(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))
    from numba.cuda.dispatcher import _Kernel

    launch = _Kernel.launch

    def noted(self, *arguments, **keywords):
        machine.current = self._codelibrary.get_asm_str(cc=(9, 0))
        machine.problem = ""
        try:
            return launch(self, *arguments, **keywords)
        except Exception as error:
            raise RuntimeError(f"{machine.problem or error}") from error

    _Kernel.launch = noted
    return machine
