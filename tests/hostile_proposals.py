"""Replies that must not get anywhere: each with the line and the reason by which it is refused."""

HEAD = "def f(pairs, *, beta=0.1):\n"
MARGIN = "    z = beta * pairs.margin_B\n"
ATTACK = "__import__('os').system('touch escaped')"


def body(*lines: str) -> str:
    """A function with these lines, the first of which is line 2."""
    return HEAD + "".join(f"    {line}\n" for line in lines)


def value(expression: str) -> str:
    """A function that returns this, in line 2."""
    return body(f"return {expression}")


HOSTILE: dict[str, tuple[str, str]] = {
    # imports, plain and in disguise
    "import above": (f"import os\n{HEAD}{MARGIN}    return z", r"line 1: no import"),
    "import inside": (body("import os", "return pairs.margin_B"), r"line 2: no import"),
    "from inside": (body("from os import system", "return pairs.margin_B"), r"line 2: no import"),
    "star import": (f"from torch import *\n{HEAD}{MARGIN}    return z", r"line 1: no import"),
    "torch under a false name": (f"import os as torch\n{HEAD}{MARGIN}    return z", r"line 1: no import"),
    "__import__": (value(ATTACK), r"line 2: .*(system|__import__)"),
    "importlib": (value("importlib.import_module('os')"), r"line 2: there is no name importlib"),
    "import by a default": (f"def f(pairs, *, beta={ATTACK}):\n{MARGIN}    return z", r"line 1: a default is a number"),
    "import by an annotation": (
        f"def f(pairs: {ATTACK}, *, beta=0.1):\n{MARGIN}    return z",
        r"line 1: an annotation",
    ),
    "import by the annotation of a name": (body(f"z: {ATTACK} = 1.0", "return z"), r"line 2: an annotation"),
    "import by the return's annotation": (
        f"def f(pairs, *, beta=0.1) -> {ATTACK}:\n{MARGIN}    return z",
        r"line 1: an annotation",
    ),
    "import by a decorator": (f"@{ATTACK}\n{HEAD}{MARGIN}    return z", r"line 1: no decorator"),
    # evaluation of text
    "eval": (value("eval('1')"), r"line 2: there is no function eval"),
    "exec": (body("exec('import os')", "return pairs.margin_B"), r"line 2: there is no function exec"),
    "compile": (value("compile('1', '', 'eval')"), r"line 2: there is no function compile"),
    "getattr": (value("getattr(torch, 'load')"), r"line 2: there is no function getattr"),
    "globals": (value("globals()"), r"line 2: there is no function globals"),
    "format string": (value("f'{pairs.__class__}'"), r"line 2: no f-string"),
    "format method": (value("'{0.__class__}'.format(pairs)"), r"line 2: .*format"),
    "type": (value("type(pairs)"), r"line 2: there is no function type"),
    # walks
    "__class__ walk": (
        value("pairs.__class__.__mro__[1].__subclasses__()"),
        r"line 2: no attribute that begins with _",
    ),
    "__class__ of a number": (value("(1.0).__class__"), r"line 2: no attribute that begins with _"),
    "__globals__": (value("F.softplus.__globals__"), r"line 2: no attribute that begins with _"),
    "__builtins__": (value("__builtins__['open']"), r"line 2: there is no name __builtins__"),
    "torch._C": (value("torch._C._cuda_init()"), r"line 2: .*torch\._C"),
    "a module of torch": (value("torch.os.system('true')"), r"line 2: there is no function torch\.os\.system"),
    "sys through torch": (value("torch.sys.modules"), r"line 2: there is no torch\.sys\.modules"),
    "F's torch": (value("F.torch.load('x')"), r"line 2: there is no function F\.torch\.load"),
    "function as a value": (body("g = torch.exp", "return g(pairs.margin_B)"), r"line 2: torch\.exp is no value"),
    "call of a call": (value("(lambda: 1)()"), r"line 2: (no lambda|only functions by their names)"),
    "call of a subscript": (value("pairs[0](1)"), r"line 2: only functions by their names"),
    "tensor's ctypes": (value("pairs.margin_B.storage().data_ptr()"), r"line 2: a tensor has no method data_ptr"),
    # files, processes, the network
    "torch.load": (value("torch.load('pairs.pt')"), r"line 2: there is no function torch\.load"),
    "torch.save": (body("torch.save(pairs.margin_B, 'x')", "return pairs.margin_B"), r"line 2: .*torch\.save"),
    "torch.hub": (value("torch.hub.load('a', 'b')"), r"line 2: there is no function torch\.hub\.load"),
    "torch.ops": (value("torch.ops.aten.exp(pairs.margin_B)"), r"line 2: .*torch\.ops"),
    "torch.jit": (value("torch.jit.load('x')"), r"line 2: .*torch\.jit"),
    "torch.from_file": (value("torch.from_file('x', shared=True, size=9)"), r"line 2: .*torch\.from_file"),
    "open": (value("open('secret').read()"), r"line 2: .*open"),
    "print": (
        body("print(pairs.margin_B)", "return pairs.margin_B"),
        r"line 2: there is no function print; leave it out",
    ),
    "tofile": (value("pairs.margin_B.numpy().tofile('x')"), r"line 2: a tensor has no method tofile"),
    "os.environ": (value("os.environ['HOME']"), r"line 2: .*os"),
    "input": (value("input()"), r"line 2: there is no function input"),
    # loops and size
    "while": (body("while True:", "    pass", "return pairs.margin_B"), r"line 2: no while"),
    "long loop": (body("for i in range(10 ** 9):", "    pass", "return pairs.margin_B"), r"line 2: a loop is"),
    "loop of many rounds": (body("for i in range(1000000):", "    pass", "return 1"), r"line 2: loops have at most 32"),
    "loops in loops": (
        body("for i in range(30):", "    for j in range(30):", "        z = i * j", "return z * pairs.margin_B"),
        r"line 3: loops have at most 32 rounds, all together",
    ),
    "loop over a tensor": (body("for z in pairs.margin_B:", "    pass", "return z"), r"line 2: a loop is"),
    "comprehension": (value("torch.stack([m for m in pairs.margin_B])"), r"line 2: no comprehension"),
    "generator": (value("max(m for m in pairs.margin_B)"), r"line 2: no comprehension"),
    "recursion": (value("f(pairs, beta=beta)"), r"line 2: there is no function f"),
    "huge zeros": (value("torch.zeros(10 ** 12) + pairs.margin_B"), r"line 2: .*torch\.zeros; use torch\.zeros_like"),
    "huge range": (value("torch.arange(10 ** 12)"), r"line 2: there is no function torch\.arange"),
    "repeat": (value("pairs.margin_B.repeat(10 ** 9)"), r"line 2: a tensor has no method repeat"),
    "expand": (value("pairs.margin_B.expand(10 ** 9, -1)"), r"line 2: a tensor has no method expand"),
    "doubling in a loop": (
        body("z = pairs.margin_B", "for i in range(32):", "    z = torch.cat([z, z])", "return z"),
        r"line 4: cat can make a tensor larger, so it stands in no loop",
    ),
    "many dimensions": (
        body("z = pairs.margin_B", *["z = z[:, None] * z"] * 4, "return z"),
        r"line 6: at most 3 times a tensor is made larger",
    ),
    "huge number": (value("pairs.margin_B * 99999999999999999999"), r"line 2: a whole number is at most 1e\+09"),
    "shift": (value("(1 << 99999999) * pairs.margin_B"), r"line 2: no LShift"),
    "long text": (value("'" + "x" * 7000 + "'"), r"line 1: a function has at most 6000 characters"),
    "deep nesting": (value("(" * 150 + "1" + ")" * 150 + "+" + "-" * 150 + "1"), r"line 2: too long or too deeply"),
    "parser at its end": (value("-" * 5500 + "1"), r"line .: (not Python that can be read|too long|not Python)"),
    "list that grows": (body("z = [pairs.margin_B]", "z = z * 1000000000", "return z"), r"line 2: a list or a tuple"),
    "pairs that grow": (value("(pairs * 1000000000)[0]"), r"line 2: pairs is read by its fields alone"),
    "matrix product": (value("pairs.margin_B @ pairs.margin_B"), r"line 2: no MatMult"),
    # edits in place
    "augmented subscript": (
        body("z = pairs.margin_B", "z[0] += 1.0", "return z"),
        r"line 3: no assignment with an operat",
    ),
    "augmented field": (
        body("pairs.margin_B += 1.0", "return pairs.margin_B"),
        r"line 2: no assignment with an operator",
    ),
    "subscript": (
        body("z = pairs.margin_B", "z[z < 0] = 0.0", "return z"),
        r"line 3: a tensor is not edited; use torch.where",
    ),
    "field": (body("pairs.margin_B = 1.0", "return pairs.margin_B"), r"line 2: a tensor is not edited"),
    "method with _": (value("pairs.chosen_logratio_B.add_(1.0)"), r"line 2: .*add_; a name that ends with _ edits"),
    "inplace by name": (
        value("F.relu(pairs.chosen_logratio_B, inplace=True)"),
        r"line 2: there is no argument inplace",
    ),
    "inplace by position": (
        value("F.relu(pairs.chosen_logratio_B, True)"),
        r"line 2: F\.relu takes at most 1 by position",
    ),
    "out": (value("torch.exp(pairs.margin_B, out=pairs.chosen_logratio_B)"), r"line 2: there is no argument out"),
    "data": (value("pairs.margin_B.data"), r"line 2: a value has no data; use \.detach\(\)"),
    "pairs under another name": (body("p = pairs", "return p.margin_B"), r"line 2: pairs is read by its fields alone"),
    "del": (body("del beta", "return pairs.margin_B"), r"line 2: no del"),
    # hooks, gradients, random state, devices
    "hook": (body("pairs.margin_B.register_hook(print)", "return pairs.margin_B"), r"line 2: .*register_hook"),
    "backward": (
        body("pairs.margin_B.sum().backward()", "return pairs.margin_B"),
        r"line 2: a tensor has no method backward",
    ),
    "requires_grad_": (value("pairs.margin_B.requires_grad_()"), r"line 2: .*requires_grad_"),
    "grad mode": (body("torch.set_grad_enabled(False)", "return pairs.margin_B"), r"line 2: .*set_grad_enabled"),
    "no_grad": (body("with torch.no_grad():", "    z = pairs.margin_B", "return z"), r"line 2: no with; use \.detach"),
    "seed": (body("torch.manual_seed(0)", "return pairs.margin_B"), r"line 2: .*a loss draws no random numbers"),
    "random": (value("pairs.margin_B + torch.randn_like(pairs.margin_B)"), r"line 2: .*a loss draws no random numbers"),
    "dropout": (value("F.dropout(pairs.margin_B)"), r"line 2: .*a loss draws no random numbers"),
    "cuda": (value("pairs.margin_B.cuda()"), r"line 2: a tensor has no method cuda; tensors stay where they are"),
    "to": (value("pairs.margin_B.to('cuda')"), r"line 2: tensors stay on their device"),
    "device by name": (
        value("torch.zeros_like(pairs.margin_B, device='cuda')"),
        r"line 2: tensors stay on their device",
    ),
    "default dtype": (body("torch.set_default_dtype(1)", "return 1"), r"line 2: .*set_default_dtype"),
    "item": (value("pairs.margin_B.mean().item()"), r"line 2: a tensor has no method item; leave it a tensor"),
    # parts of Python that a loss has no use for
    "global": (body("global torch", "torch = 1", "return pairs.margin_B"), r"line 2: no global"),
    "given name": (body("torch = pairs.margin_B", "return torch"), r"line 2: torch keeps its meaning"),
    "given argument": (
        "def f(pairs, *, beta=1, F=2):\n    return pairs.margin_B",
        r"line 1: F means something else here",
    ),
    "walrus": (value("(z := pairs.margin_B)"), r"line 2: no := ; assign on a line of its own"),
    "lambda": (body("g = lambda x: x", "return pairs.margin_B"), r"line 2: no lambda"),
    "inner function": (body("def g(x):", "    return x", "return pairs.margin_B"), r"line 2: no function inside"),
    "class": (body("class A: pass", "return pairs.margin_B"), r"line 2: no class"),
    "class above": (f"class A:\n    pass\n\n{HEAD}{MARGIN}    return z", r"line 4: one function alone"),
    "try": (body("try:", "    z = 1", "except:", "    z = 2", "return pairs.margin_B"), r"line 2: no try"),
    "raise": (body("raise SystemExit"), r"line 2: (a return is needed|no raise)"),
    "assert": (body("assert 0", "return pairs.margin_B"), r"line 2: no assert"),
    "yield": (body("yield pairs.margin_B", "return pairs.margin_B"), r"line 2: no yield"),
    "async": (f"async {HEAD}{MARGIN}    return z", r"line 1: no async"),
    "star arguments": ("def f(pairs, *rest, beta=1, **more):\n    return pairs.margin_B", r"line 1: no star arguments"),
    "star in a call": (value("torch.exp(*pairs)"), r"line 2: no star arguments"),
    "match": (body("match beta:", "    case 1:", "        pass", "return pairs.margin_B"), r"line 2: no match"),
    "dict": (body("z = {1: 2}", "return pairs.margin_B"), r"line 2: no dict"),
    "text": (body("z = 'a' * 10", "return pairs.margin_B"), r"line 2: a value is a number or a tensor"),
    "statement beside it": (f"{HEAD}{MARGIN}    return z\n\nf(1)", r"line 5: one `def` alone"),
    "constant beside it": (f"EPS = 1e-6\n{HEAD}{MARGIN}    return z", r"line 1: one `def` alone"),
    "undefined name": (value("gamma * pairs.margin_B"), r"line 2: there is no name gamma"),
    "undefined field": (
        value("pairs.margin"),
        r"line 2: the pairs have no field margin; did you mean pairs\.margin_B\?",
    ),
    "numpy": (value("np.exp(pairs.margin_B)"), r"line 2: .*np"),
    "no return": (body("z = pairs.margin_B"), r"line 2: a return is needed"),
    "control character": (
        value("pairs.margin_B") + "    # \x1b[2J",
        r"line 3: no invisible character, but here is U\+001B",
    ),
    "writing from the right": (body("# \u202e right", "return pairs.margin_B"), r"line 2: .*U\+202E"),
    "zero byte": (value("pairs.margin_B\0"), r"line 2: no invisible character, but here is U\+0000"),
    "encoding in a comment": (f"# -*- coding: utf-7 -*-\n{value('+AG8AcwAu')}", r"line 3: there is no name AG8AcwAu"),
    "name that looks alike": (
        body("\u03bf\u03c1\u03b5\u03b7 = 1", "return \u043epen(1)"),
        r"line 3: there is no function",
    ),
    "name in another width": (value("\uff45\uff56\uff41\uff4c('1')"), r"line 2: there is no function eval"),
    "name of the function": (
        f"def __getattr__(pairs, *, beta=1):\n{MARGIN}    return z",
        r"line 1: a name has ASCII letters",
    ),
}
"""By what is tried: the code, and what the refusal says."""
