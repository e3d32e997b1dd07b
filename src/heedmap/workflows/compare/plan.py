"""The plan of a comparison: variants, seeds, and the options that all share.

A variant is written ``KEY=VALUE,KEY=VALUE``, or ``NAME:KEY=VALUE,...`` where it is to have a name of its own; the keys
are options of training, and a list is joined by ``+`` (``taps=stage2+stage3``).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from heedmap.config import TrainOptions, known_options, read_yaml
from heedmap.errors import OptionError, nearest
from heedmap.files import finite

# Pairs have to see the same images in the same split and order, and to lie where the comparison looks for them.
SHARED = ("data", "out", "root", "download", "seed", "test", "validation", "allow_unreadable")
MOST_NAME = 60  # characters of a folder's name
EXPERIMENT = ("title", "published", "options", "variants", "seeds", "budgets")


@dataclass(frozen=True)
class Variant:
    """One way of training: its name (as written where none was given), options over the shared ones, and folder."""

    name: str
    changes: Mapping[str, Any]
    folder: str  # below the comparison's


@dataclass(frozen=True)
class Job:
    """One run of a comparison: its variant and seed, its folder, and all its options."""

    variant: Variant
    seed: int
    path: Path
    options: TrainOptions

    @property
    def name(self) -> str:
        """Variant and seed, for messages."""
        return f"{self.variant.name}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison before it is run."""

    options: TrainOptions  # shared by all variants; seed is the first one, out is ignored
    variants: tuple[Variant, ...]  # the first is the baseline
    seeds: tuple[int, ...]  # one run a variant and seed
    title: str = ""
    published: str = ""  # figures that others published of the same experiment, in words

    def jobs(self, folder: Path) -> list[Job]:
        """Return all runs, seed by seed, so that pairs are complete early."""
        return [
            Job(variant, seed, path, replace(self.options, **variant.changes, seed=seed, out=str(path)))
            for seed in self.seeds
            for variant in self.variants
            for path in [folder / variant.folder / f"seed-{seed}"]
        ]

    def as_text(self) -> str:
        """Return the content of comparison.yaml."""
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in ("out", "seed")}
        content = {
            **{"title": self.title, "published": self.published, "seeds": list(self.seeds)},
            "variants": [{"name": v.name, "folder": v.folder, "changes": finite(v.changes)} for v in self.variants],
            "options": finite(options),
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def make_plan(
    options: TrainOptions, variants: Iterable[str], seeds: int, *, title: str = "", published: str = ""
) -> Plan:
    """Read and check variants as the user wrote them, for ``seeds`` seeds counted from the options' own.

    Raises:
        OptionError: no seed, fewer than two variants, two that are alike, or one that :func:`read_variant` refuses.
    """
    if seeds < 1:
        raise OptionError(f"seeds = {seeds} is out of range: give 1 or more; an interval needs 2, and 5 are better.")
    read = [read_variant(text) for text in variants]
    if len(read) < 2:
        raise OptionError("A comparison needs two variants or more: --variants attention=none attention=dot.")
    made: list[Variant] = []
    for name, changes in read:
        for other in made:
            if other.name == name:
                raise OptionError(f"Two variants are called {name!r}.")
            if other.changes == changes:
                raise OptionError(f"Variants {other.name!r} and {name!r} are the same.")
        made.append(Variant(name, changes, _free_folder(name, {variant.folder for variant in made})))
        try:
            replace(options, **changes)
        except OptionError as error:
            raise OptionError(f"Variant {name!r}: {error}") from None
    return Plan(options, tuple(made), tuple(range(options.seed, options.seed + seeds)), title, published)


def read_variant(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and changes of a variant as the user wrote it.

    Raises:
        OptionError: not of the form, an unknown option, with the nearest right one, or one that variants must share.
    """
    match = re.fullmatch(r"(?:([^=:]+):)?(.*)", text.strip(), re.DOTALL)
    assert match is not None  # the second group takes anything
    name, values = (match[1] or text).strip(), {}
    where = f" in variant {name!r}"
    for part in filter(None, map(str.strip, match[2].split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{part!r}{where} is not of the form KEY=VALUE, as in attention=none.")
        values[key.strip()] = _value(value.strip())
    changes = known_options(values, where)
    if not changes and match[1] is None:
        raise OptionError(f"Variant {text!r} changes nothing; write KEY=VALUE, or NAME: for the options as they are.")
    if shared := [key for key in SHARED if key in changes]:
        why = "must be the same for all variants, or they could not be paired"
        raise OptionError(f"{shared[0]!r}{where} {why}; give it as an option of the comparison.")
    return name, changes


def write_variant(name: str, changes: Mapping[str, Any]) -> str:
    """Return the words of a variant, as :func:`read_variant` reads them."""
    parts = (f"{key}={'+'.join(value) if isinstance(value, list | tuple) else value}" for key, value in changes.items())
    return f"{name}:{','.join(parts)}"


def read_experiment(path: str | Path, budget: str | None) -> dict[str, Any]:
    """Read an experiment, a YAML file with the keys ``EXPERIMENT``.

    The options and ``seeds`` of the ``budget`` win over the shared ones. The result has ``options`` (name -> value),
    ``variants`` (as a user would write them), ``seeds`` (or None), ``title`` and ``published``.

    Raises:
        OptionError: no such file, an unknown key or budget, or a value of the wrong kind.
    """
    content = read_yaml(path)
    if unknown := [key for key in content if key not in EXPERIMENT]:
        hint = nearest(unknown[0], EXPERIMENT)
        raise OptionError(f"Unknown key {unknown[0]!r} in {path}; there are {', '.join(EXPERIMENT)}.{hint}")
    budgets = content.get("budgets") or {}
    if budget is None and budgets:
        raise OptionError(f"{path} has budgets; name one of {', '.join(budgets)} with --budget.")
    if budget is not None and budget not in budgets:
        known = ", ".join(budgets) or "none"
        raise OptionError(f"{path} has no budget {budget!r}; it has {known}.{nearest(budget, budgets)}")
    chosen = dict(budgets[budget]) if budget is not None else {}
    seeds = chosen.pop("seeds", content.get("seeds"))
    variants = content.get("variants") or {}
    if not isinstance(variants, dict) or not all(isinstance(value, dict | None) for value in variants.values()):
        raise OptionError(f"'variants' in {path} must hold 'name: {{option: value, ...}}' lines.")
    return {
        "options": known_options({**(content.get("options") or {}), **chosen}, f" in {path}"),
        "variants": tuple(write_variant(str(name), changes or {}) for name, changes in variants.items()),
        "seeds": seeds,
        "title": str(content.get("title") or ""),
        "published": str(content.get("published") or ""),
    }


def read_plan(path: Path) -> Plan:
    """Read what :meth:`Plan.as_text` wrote; OptionError where the file is missing or damaged."""
    content, where = read_yaml(path), f" in {path}"
    try:
        seeds, entries = tuple(int(seed) for seed in content["seeds"]), content["variants"]
        variants = tuple(Variant(v["name"], known_options(v["changes"], where), v["folder"]) for v in entries)
        options = TrainOptions(**known_options(content["options"], where), seed=seeds[0])
        return Plan(options, variants, seeds, content["title"], content["published"])
    except (KeyError, TypeError, IndexError, ValueError):
        raise OptionError(f"{path} is damaged; start the comparison again with another --out.") from None


def extend_plan(saved: Plan, given: Plan, where: Path) -> Plan:
    """Return the saved plan with the seeds and variants that the given one adds; OptionError for other changes."""
    for field in dataclasses.fields(TrainOptions):
        before, now = getattr(saved.options, field.name), getattr(given.options, field.name)
        if before != now and field.name not in ("out", "workers", "memory", "save_every"):
            begun = f"{field.name} left open" if before is None else f"{field.name} = {before!r}"
            instead, way = "left open" if now is None else repr(now), "leave that as it was, or name another --out"
            raise OptionError(f"{where} was begun with {begun}, not {instead}; {way}.")
    known = {variant.name: variant.changes for variant in saved.variants}
    for variant in given.variants:
        if known.get(variant.name, variant.changes) != variant.changes:
            raise OptionError(f"Variant {variant.name!r} had other options in {where}; give it another name.")
    baseline, other = saved.variants[0].name, given.variants[0].name
    if baseline != other:
        raise OptionError(f"The baseline in {where} is {baseline!r}, not {other!r}; name it first.")
    variants = list(saved.variants)
    for variant in given.variants:
        if variant.name not in known:
            folder = _free_folder(variant.name, {other.folder for other in variants})
            variants.append(replace(variant, folder=folder))
    seeds = tuple(sorted({*saved.seeds, *given.seeds}))
    return replace(saved, options=given.options, variants=tuple(variants), seeds=seeds)


def _free_folder(name: str, taken: set[str]) -> str:
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:MOST_NAME] or "variant"
    folders = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    # Name and name are the same folder in some file systems.
    used = {folder.lower() for folder in taken}
    return next(folder for folder in folders if folder.lower() not in used)


def _value(text: str) -> Any:
    """Return a value as YAML reads it, a list where + joins several; names that YAML misreads stay text."""
    if "+" in text and re.search(r"[A-Za-z]", text) and not re.fullmatch(r"[-\d.]+[eE]\+\d+", text):
        return text.split("+")
    value = yaml.safe_load(text) if text else ""
    return value if isinstance(value, bool | int | float | str) else text
