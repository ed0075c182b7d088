"""The tables of docs/networks.md: every method on every kind of network.

``python -m tests.networks_table`` writes them anew.
"""

from __future__ import annotations

import copy
import re
import warnings
from functools import cache
from pathlib import Path

import torch

from mdistiller.dataset import build_model
from mdistiller.distillers import distiller_dict
from mdistiller.distillers._common import probe
from mdistiller.engine.cfg import CFG
from mdistiller.engine.run import assemble_distiller
from mdistiller.errors import ConfigError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
FILE = f"{Path(__file__).parent / 'file_network.py'}"

# What stands for each kind, by the head of its column.
KINDS = {
    "ResNet": "torchvision:resnet18",
    "MobileNetV3": "torchvision:mobilenet_v3_small",
    "ViT": "timm:test_vit",
    "SqueezeNet": "torchvision:squeezenet1_1",
    "file, F.relu": f"{FILE}:small",
}
# Of every pair the other network.
OTHER = {"student": "timm:test_resnet", "teacher": "timm:test_resnet"}
CLASSES, BATCH, IMAGES = 10, 4, 50
WORKS = "works"


@cache
def network(name):
    torch.manual_seed(0)
    return build_model("digits", name, CLASSES)


def settings(method, student, teacher):
    cfg = CFG.clone()
    dims = ["CRD.NCE.K", 8]
    for role, net in (("STUDENT", student), ("TEACHER", teacher)):
        pooled = probe(net, (32, 32)).get("pooled_feat")
        if pooled is not None:
            dims += [f"CRD.FEAT.{role}_DIM", pooled.flatten(1).shape[1]]
    cfg.merge_from_list(["DATASET.TYPE", "digits", "DISTILLER.TYPE", method, *dims])
    return cfg


def outcome(method, student, teacher):
    """WORKS, or the line that a forward and backward pass of a batch ends with."""
    student, teacher = copy.deepcopy(network(student)), copy.deepcopy(network(teacher)).eval()
    cfg = settings(method, student, teacher)
    contrast = torch.randint(IMAGES, (BATCH, 9))
    image, target = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)
    try:
        distiller = assemble_distiller(cfg, student, teacher, IMAGES).train()
        inputs = {"index": torch.arange(BATCH), "contrastive_index": contrast}
        logits, losses = distiller(image=image, target=target, epoch=3, **inputs)
    except ConfigError as error:
        return str(error)
    except KeyError as error:  # as a trainer does
        return refusal(distiller, error.args[0])
    total = sum(loss.mean() for loss in losses.values())
    assert logits.shape == (BATCH, CLASSES) and total.isfinite()
    kd = sum(losses[n].mean() for n in distiller.distillation_losses if n in losses)
    (gradient,) = torch.autograd.grad(kd, [next(p for p in student.parameters())])
    total_gradient = gradient.abs().sum()
    assert total_gradient.isfinite() and total_gradient > 0
    return WORKS


def refusal(distiller, key):
    try:
        distiller.refuse_networks(key)
    except ConfigError as error:
        return str(error)
    raise KeyError(key)


def methods():
    return sorted(n for n in distiller_dict if n != "NONE" and not n.startswith("CROSSBATCH_"))


def rows(method):
    """(role, kind, outcome) of a network of every kind as student, then as teacher."""
    for role in ("student", "teacher"):
        for kind, name in KINDS.items():
            pair = {**OTHER, role: name}
            yield role, kind, outcome(method, **pair)


def shortened(line):
    """A line without what differs between networks."""
    line = line.replace(FILE, "net.py")
    for name in (*KINDS.values(), "net.py:small"):
        line = line.replace(name, "NETWORK")
    line = re.sub(r"^\w+ needs the", "METHOD needs the", line.replace("the method", "METHOD"))
    line = re.sub(r"\(\d+(, \d+)*\)|(?<=stage )\d+", "(...)", line)
    line = re.sub(r" \d+(?=[ ;])", " ...", line)
    return re.sub(r"returns only [\w, ]+;", "returns only ...;", line)


def tables():
    """Markdown: a table for students, one for teachers, and the lines that they refer to."""
    lines, cells = {}, {}
    for method in methods():
        for role, kind, text in rows(method):
            if text != WORKS:
                text = f"line {lines.setdefault(shortened(text), len(lines) + 1)}"
            cells[role, method, kind] = text
    parts = []
    for role in ("student", "teacher"):
        head = f"| as the {role} | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}"
        body = (f"| {m} | {' | '.join(cells[role, m, k] for k in KINDS)} |" for m in methods())
        parts.append("\n".join([head, *body]))
    parts.append("\n".join(f"{number}. {line}" for line, number in lines.items()))
    return "\n\n".join(parts) + "\n"


def on_the_page():
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def cells_on_the_page():
    """(role, method, kind) -> WORKS or the shortened line."""
    lines = dict(re.findall(r"^(\d+)\. (.*)$", on_the_page(), re.MULTILINE))
    cells = {}
    for part in on_the_page().split("\n\n")[:2]:
        (head, *kinds), _, *body = (
            [cell.strip() for cell in row.strip("|").split("|")] for row in part.splitlines()
        )
        role = head.removeprefix("as the ")
        for method, *texts in body:
            for kind, text in zip(kinds, texts, strict=True):
                cells[role, method, kind] = lines.get(text.removeprefix("line "), text)
    return cells


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{after}", encoding="utf-8")
