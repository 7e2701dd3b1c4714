"""The text of `precision.schema.json`, which is shipped beside this file for editors.

After a change to the configuration: `python -m deepseek_hpf.config_schema` writes it anew.
"""

import json
from pathlib import Path

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.files import write_text_atomically

SCHEMA_FILE = Path(__file__).with_name("precision.schema.json")


def schema_text() -> str:
    """The JSON Schema of the configuration file.

    Returns:
        Indented JSON that ends with a line end.
    """
    return json.dumps(PrecisionConfig.json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text_atomically(SCHEMA_FILE, schema_text())
