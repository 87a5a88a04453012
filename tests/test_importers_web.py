"""Pictures and contracts from the web: releases of Segments.ai, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import pytest
from web_server import serving

from segdist.data.names import parse_names
from segdist.errors import LabelError

SECRET = "?X-Amz-Signature=topsecret"

# -- contracts --------------------------------------------------------------------------------------------------------


def test_names_come_from_a_web_server_and_its_credential_is_not_told() -> None:
    with serving({"/id2label.json": b'{"0": "sky", "1": "road"}', "/names.txt": b"sky\nroad\n"}) as web:
        assert parse_names(f"{web.url}/id2label.json{SECRET}").names == ["sky", "road"]
        assert parse_names(f"{web.url}/names.txt{SECRET}", first=3).known == {0, 1, 2, 3, 4, 255}
        with pytest.raises(LabelError, match=r"there is no .*/nothing\.json") as error:
            parse_names(f"{web.url}/nothing.json{SECRET}")
    assert "secret" not in str(error.value)
