"""Pictures of what was looked at show the last layer's own numbers."""

import numpy as np

from tasks.attention import attention_figures, save_figures


def test_the_panels_are_the_last_layers_heads_and_the_mean_of_those_that_look_across(tmp_path):
    draw = np.random.default_rng(0)
    watched = {kind: [draw.dirichlet(np.ones(8), (1, 2, 8)) for _ in range(3)] for kind in ("self", "cross")}
    asking, own, seen = ["a", "b", "c"], ["x", "a", "b"], ["one", "two", "three", "four"]
    figures = attention_figures(watched, asking, own, seen)
    assert figures.keys() == {"cross", "cross_heads", "self_heads"}

    def panels(name: str) -> list[np.ndarray]:
        return [np.asarray(axes.images[0].get_array()) for axes in figures[name].axes if axes.images]

    for name, kind, width in (("cross_heads", "cross", 4), ("self_heads", "self", 3)):
        shown = panels(name)
        assert len(shown) == 2
        for head, panel in enumerate(shown):
            np.testing.assert_array_equal(panel, watched[kind][-1][0, head, :3, :width])
    (mean,) = panels("cross")
    np.testing.assert_allclose(mean, watched["cross"][-1][0, :, :3, :4].mean(0))
    save_figures(figures, str(tmp_path / "pictures"), 12)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"0012.{name}.png" for name in figures}
    assert attention_figures({**watched, "cross": []}, asking, own).keys() == {"self_heads"}
