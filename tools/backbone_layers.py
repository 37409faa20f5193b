"""Write the names of layers and cuts that the completion of a shell offers without torch.

    python tools/backbone_layers.py

It writes ``featx/backbones/layers.json`` for tiny, lite0 and torchvision's backbones; run it after
an update of torchvision.
"""

import json

from featx.backbones.catalog import build_skeleton
from featx.backbones.cuts import list_cuts, main_cuts
from featx.backbones.network import layer_names
from featx.backbones.table import LAYERS, backbone_table

_DEPTH = 2  # as featx backbones lists them


def main() -> None:
    """Write the file, each list of names once."""
    lists: list[list[list[str]]] = []
    found: dict[str, int] = {}
    for row in backbone_table():
        if row.name.startswith("timm/"):
            continue
        layers = layer_names(build_skeleton(row.name, row.image_size), depth=_DEPTH)
        cuts = [cut.name for cut in main_cuts(list_cuts(row.name, row.image_size))]
        if [layers, cuts] not in lists:
            lists.append([layers, cuts])
        found[row.name] = lists.index([layers, cuts])
    lines = ",\n".join(json.dumps(each) for each in lists)
    LAYERS.write_text(f'{{"backbones": {json.dumps(found)},\n"lists": [\n{lines}]}}\n')


if __name__ == "__main__":
    main()
