"""`perfusion catalog` writes a catalogue and says what is in it."""

from tests.support.command import only_object


def test_catalog(perfusion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = perfusion("catalog", "shop", "--products", 2, "--images", 1)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("2 products, 2 photos, ")
    assert out.split()[-2:] == ["shop/concepts.parquet", "shop/prompts.parquet"]
    code, out, _ = perfusion("catalog", "shop", "--products", 2, "--images", 1, "--json")
    assert only_object(out)["products"] == 2
