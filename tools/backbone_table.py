"""Write the table of backbones that ``featx backbones`` and checks of names read without torch.

    python tools/backbone_table.py

It writes ``featx/backbones/table.json`` from torchvision's records and models. Run it after an
update of torchvision; a test tells when.
"""

import json
from dataclasses import asdict

from featx.backbones.catalog import backbone_names, describe_backbone
from featx.backbones.table import TABLE, public_version


def main() -> None:
    """Write the file, a row on each line."""
    versions = {"torchvision": public_version("torchvision")}
    rows = [json.dumps(asdict(describe_backbone(name))) for name in backbone_names()]
    lines = ",\n".join(rows)
    TABLE.write_text(f'{{"versions": {json.dumps(versions)},\n"rows": [\n{lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
