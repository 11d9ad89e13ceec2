"""The pre-commit hooks run the commands of `make check`, and nothing that has to be downloaded."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_hooks_are_local_and_run_what_make_check_runs():
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck: ")[2].partition("\n\n")[0]
    checks = [line.strip().removeprefix("@$(BIN)/").split() for line in recipe.splitlines()[1:]]
    hooks = [hook["entry"].removeprefix(".venv/bin/").split() for hook in repo["hooks"]]
    # A hook mends what it can; a check only tells. Files are given to ruff by pre-commit.
    assert [[word for word in each if word not in (".", "--check")] for each in checks] == [
        [word for word in each if word != "--fix"] for each in hooks
    ]
