"""What the documentation site makes from the code: fields, commands, model tables, one page a module.

MkDocs calls `on_config`, `on_files` and `on_post_build` (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.utils.meta import get_data

ROOT = Path(__file__).parents[1]
PACKAGES = ("tokenizers_vq", "prior")
PYTHON = "reference/python"


def on_config(config: Any) -> Any:
    """Put one page a module below Reference > Python."""
    modules: dict[str, list[Any]] = {package: [] for package in PACKAGES}
    for name in _modules():
        modules[name.split(".")[0]].append({name: f"{PYTHON}/{name}.md"})
    for section in config["nav"]:
        for pages in section.values():
            if isinstance(pages, list):
                for page in pages:
                    if isinstance(page, dict) and "Python" in page:
                        page["Python"] = [page["Python"], *({package: each} for package, each in modules.items())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in _pages():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_build(config: Any) -> None:
    """Raise where a public name of the packages has no entry in the reference."""
    documented: set[str] = set()
    for name in _modules():
        page = Path(config["site_dir"]) / PYTHON / f"{name}.html"
        documented.update(re.findall(r'id="([\w.]+)"', page.read_text(encoding="utf-8")))
    public = {name for package in PACKAGES for name in _public(griffe.load(package, search_paths=[str(ROOT)]))}
    if missing := sorted(public - documented):
        raise PluginError(f"{len(missing)} public names are not in the reference, the first: {', '.join(missing[:5])}")
    print(f"reference: {len(public):,} public names, all documented")


def _modules() -> list[str]:
    """Dotted names of all public modules."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


def _public(item: Any) -> Iterator[str]:
    """Dotted names of the modules, classes, functions and attributes below `item` that have no leading underscore."""
    yield item.path
    for name, member in item.members.items():
        if not name.startswith("_") and not member.is_alias and (member.is_module or not item.is_function):
            yield from _public(member)


def _pages() -> Iterator[tuple[str, str]]:
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    yield "contributing.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    yield f"{PYTHON}/index.md", _python()
    for name in _modules():
        yield f"{PYTHON}/{name}.md", f"::: {name}\n"
    yield "reference/commands.md", _commands()
    yield from _fields()
    yield "models/published.md", _published()
    yield "models/priors.md", _published_priors()
    yield "models/shipped.md", _shipped()
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        yield f"notebooks/{path.stem}.md", _notebook(path)


def _python() -> str:
    rows = []
    for name in _modules():
        path = ROOT.joinpath(*name.split("."))
        path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append(f"| [`{name}`]({name}.md) | {_cell(about.partition(chr(10))[0])} |")
    return "# Python\n\nEvery module, and what it is for.\n\n| module | |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _commands() -> str:
    import typer

    from prior.cli.app import app as prior_app
    from tokenizers_vq.cli.app import app

    parts = ["# Commands\n"]
    parts.append(_EXITS)
    for name, each in (("tvq", app), ("tvq-prior", prior_app)):
        group: Any = typer.main.get_command(each)
        parts.append(f"## {name}\n\n{group.help}\n")
        for verb, command in group.commands.items():
            parts.append(f"### {name} {verb}\n\n{command.help}\n\n{_parameters(name, verb, command)}")
    return "\n".join(parts)


_EXITS = """Every command prints one line that says what went wrong, and ends with one of these:

| exit status | what it means |
| --- | --- |
| 0 | done |
| 1 | `tvq doctor` found something; a row of `tvq ablate` could not be trained |
| 2 | something that you can put right: the line says what |
| 130, 143 | stopped by Ctrl-C or by `kill`; a training run is saved first, and the same command resumes it |

Results go to stdout, notes and errors to stderr. These options stand anywhere in a command:

| | |
| --- | --- |
| `--quiet` | results and errors only: no notes, no progress |
| `--debug` | show the traceback of an error |

`tvq --version` prints the version, and `--help` behind any command its options.

Commands that have a result take `--json`, which prints it as one line of JSON. `tvq --install-completion` lets the
shell complete commands and options (`--show-completion` prints the script instead); `tvq-prior` has its own.

The same in Python: [`tvq.train`](python/tokenizers_vq.verbs.train.md),
[`evaluate`](python/tokenizers_vq.verbs.evaluate.md), [`report`](python/tokenizers_vq.verbs.report.md),
[`compare`](python/tokenizers_vq.verbs.compare.md), [`probe`](python/tokenizers_vq.verbs.probe.md),
[`encode_folder`](python/tokenizers_vq.verbs.encode_folder.md),
[`doctor`](python/tokenizers_vq.verbs.doctor.md) and [`ablate`](python/tokenizers_vq.verbs.ablate.md).
"""


def _parameters(name: str, verb: str, command: Any) -> str:
    words, rows = [name, verb], []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or parameter.name.upper()
            words.append(shown)
            label = shown
        else:
            label = ", ".join(parameter.opts)
        default = parameter.default
        told = "required" if parameter.required else "" if default in (None, (), [], False) else f"default: {default}"
        rows.append(f"| `{_cell(label)}` | {_cell(parameter.help or '')} | {_cell(str(told))} |")
    table = "\n".join(["| | | |", "| --- | --- | --- |", *rows]) + "\n" if rows else ""
    return f"```text\n{' '.join([*words, '[OPTIONS]'])}\n```\n\n{table}"


def _fields() -> Iterator[tuple[str, str]]:
    from prior.model import PriorConfig
    from prior.recipe import PriorRecipe
    from tokenizers_vq.hierarchical import HierarchicalConfig
    from tokenizers_vq.tokenizer import TokenizerConfig
    from tokenizers_vq.training.recipe import Recipe

    told = (
        "Set any field by its path: `tvq train RECIPE model.quantizer.num_codes=4096`. `tvq fields PATH` prints the "
        "same tables in a terminal.\n"
    )
    pages = {
        "models": ("Fields of models", [TokenizerConfig, HierarchicalConfig]),
        "recipes": ("Fields of recipes", [Recipe]),
        "priors": ("Fields of priors", [PriorRecipe, PriorConfig]),
    }
    seen: dict[type, str] = {}
    for page, (title, configs) in pages.items():
        # A config that another page has already is linked to from there.
        own = [config for config in _reached(configs) if config not in seen]
        seen.update(dict.fromkeys(own, page))
        sections = [_section(config, page, seen) for config in own]
        yield f"reference/{page}.md", "\n".join([f"# {title}\n", told, *sections])


def _reached(configs: list[type]) -> list[type]:
    from tokenizers_vq.fields import configs_of

    found = list(configs)
    for config in found:
        for field in config.model_fields.values():  # type: ignore[attr-defined]
            found.extend(inner for inner in configs_of(field.annotation) if inner not in found)
    return found


def _section(config: Any, page: str, seen: dict[type, str]) -> str:
    from tokenizers_vq.fields import configs_of, section

    one = section(config)
    rows = []
    for field in one.fields:
        told = _cell(field.type)
        for inner in configs_of(config.model_fields[field.name].annotation):
            where = "" if seen[inner] == page else f"{seen[inner]}.md"
            kind = section(inner).kind or "fields of its own"
            link = f"[{kind if section(inner).kind else _title(inner)}]({where}#{_anchor(inner)})"
            told = re.sub(rf"(?<![\w\[-]){re.escape(kind)}(?![\w\]-])", link, told, count=1)
        rows.append(f"| `{field.name}` | {told} | `{_cell(field.default)}` | {_cell(field.help)} |")
    head = f"## {_title(config)} {{ #{_anchor(config)} }}\n\n{one.about}\n"
    if not rows:
        return f"{head}\nIt has no fields.\n"
    return "\n".join([head, "| field | takes | default | |", "| --- | --- | --- | --- |", *rows, ""])


def _title(config: type) -> str:
    from tokenizers_vq.fields import section

    kind, name = section(config).kind, config.__name__.removesuffix("Config")
    return f"{kind} ({name})" if kind else name


def _anchor(config: type) -> str:
    return f"{config.__module__}.{config.__name__}".lower().replace(".", "-").replace("_", "-")


def _published() -> str:
    from tokenizers_vq.conversion import catalogue

    rows = []
    for one in catalogue.entries().values():
        grid = " + ".join(catalogue.grid_texts(one)) or "not known"
        size = f"{one.image_size} px" if one.image_size else "not known"
        codes = f"{one.codes:,}" if one.codes else "not known"
        rows.append(_row(one, f"{size}, {grid} of {codes}", _scores(one.rfid)))
    return (
        f"# Published tokenizers\n\nThe {len(rows)} tokenizers below are known by name. `tvq.load(NAME)` downloads the "
        "weights, converts them and keeps the result. `tvq info NAME` also prints files, checksums and papers. Figures "
        "are those that authors or users published; what no source says is not known.\n\n"
        "| tokenizer | codes | parameters | licences | rFID |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


def _published_priors() -> str:
    from prior.conversion import catalogue

    rows = []
    for one in catalogue.entries().values():
        told = _cell(one.told) + ("" if one.trained else "<br>no weights are published, only code")
        rows.append(_row(one, f"{told}<br>tokenizer: {one.tokenizer or 'its own'}", _scores(one.gfid)))
    return (
        f"# Published priors\n\nThe {len(rows)} priors below are known by name. `prior.load(NAME)` downloads the "
        "weights and the tokenizer's, converts them and keeps the result. `tvq-prior info NAME` also prints files and "
        "papers, and the command with the published settings.\n\n"
        "| prior | told | parameters | licences | gFID |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _row(one: Any, what: str, scores: str) -> str:
    """A published model's row: its name, what its codes are, size, licences and figures."""
    licences = f"code: {one.code_licence or 'not known'}<br>weights: {one.weights_licence or 'not known'}"
    cells = (
        f"`{one.name}`<br>{_cell(one.about)}",
        what,
        one.parameters or "not known",
        licences,
        scores or "not known",
    )
    return f"| {' | '.join(cells)} |"


def _scores(scores: Any) -> str:
    return "<br>".join(_cell(f"{score.value:g} ({score.protocol}; {score.said_by})") for score in scores)


def _shipped() -> str:
    from prior.model import WEIGHTS as PRIORS
    from tokenizers_vq.tokenizer import WEIGHTS as TOKENIZERS

    parts = [
        "# Shipped models\n\nThese weights come inside the package: `load` takes them by name, without a network.\n"
    ]
    for folder in (path for weights in (TOKENIZERS, PRIORS) for path in sorted(weights.iterdir())):
        if (folder / "README.md").is_file():
            size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
            text, _ = get_data((folder / "README.md").read_text(encoding="utf-8"))
            body = re.sub(r"^#", "##", text.strip(), flags=re.MULTILINE)
            parts.append(f"{body}\n\nSize on disk: {size:.1f} MiB.\n")
    return "\n".join(parts)


def _notebook(path: Path) -> str:
    """A notebook as a page: its text, its code, and what it showed when it was last run."""
    parts = [f"The notebook is `examples/notebooks/{path.name}`.\n"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", source) + "\n")
            continue
        parts.append(f"```python\n{source}\n```\n")
        for output in cell["outputs"]:
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">\n')
            elif "text/html" in data:
                parts.append(f"<div>{data['text/html'].strip()}</div>\n")
            elif text := "".join(output.get("text", ())) or data.get("text/plain", ""):
                parts.append(f"```text\n{text.rstrip()}\n```\n")
    title, *rest = parts[1].split("\n", 1)
    return "\n".join([title, "", parts[0], *rest, *parts[2:]])
