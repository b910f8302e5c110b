# SPDX-License-Identifier: Apache-2.0
"""The front matter of a card, and whether the Hub would accept it.

`ModelCard.validate` asks the Hub; this file makes the same checks without a network.
Source: https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/repositories-licenses.
"""

import re
from typing import Any, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from model_cards.facts import Facts

LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql
    unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905
)
RELATIONS = ("adapter", "finetune", "merge", "quantized")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")  # ISO 639-1 to 639-3
LICENSE_NAME = re.compile(r"[a-z0-9-.]+")
LICENSE_LINK = re.compile(r"https://\S+|LICENSE(\.\w+)?")


def make_metadata(facts: Facts, tags: list[str], library: str, results: list[EvalResult]) -> ModelCardData:
    """The front matter, checked.

    Args:
        facts (`Facts`): Licence, languages, base model, data sets, further tags.
        tags (`list[str]`): Tags that follow from the model itself.
        library (`str`): `"transformers"` or `"peft"`.
        results (`list[EvalResult]`): Entries of `model-index`, which is left out if there are none.

    Raises:
        `ValueError`: naming the field that the Hub would refuse.
    """
    data = ModelCardData(
        language=facts.language,  # type: ignore[arg-type]
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        library_name=library,
        pipeline_tag="text-generation",
        base_model=facts.base_model,  # type: ignore[arg-type]
        base_model_relation=facts.base_model_relation,
        datasets=facts.datasets,  # type: ignore[arg-type]
        tags=[*tags, *(facts.tags or [])],
        model_name=facts.name,
        eval_results=results or None,
    )
    check_metadata(data.to_dict())
    return data


def check_metadata(data: dict[str, Any]) -> None:
    """Check front matter, read from YAML, as the Hub does.

    Raises:
        `ValueError`: naming the field and what would be right.
    """
    for wrong, right in (("licence", "license"), ("dataset", "datasets"), ("library", "library_name")):
        if wrong in data:
            raise ValueError(f"`{wrong}` is not a field of a card: the Hub calls it `{right}`")
    check_license(data)
    for field, allowed in (("pipeline_tag", ("text-generation",)), ("library_name", ("peft", "transformers"))):
        if data.get(field) not in allowed:
            raise ValueError(f"`{field}` is {data.get(field)!r}, but must be {' or '.join(allowed)}")
    for field in ("base_model", "datasets"):
        for name in listed(data.get(field)):
            check_repo_id(field, name)
    if "base_model_relation" in data and "base_model" not in data:
        raise ValueError("`base_model_relation` needs a `base_model`")
    if data.get("base_model_relation") not in (None, *RELATIONS):
        raise ValueError(
            f"`base_model_relation` is {data['base_model_relation']!r}, but must be one of {', '.join(RELATIONS)}"
        )
    if data["library_name"] == "peft" and data.get("base_model_relation") != "adapter":
        raise ValueError("the card of an adapter needs `base_model`, and `base_model_relation: adapter`")
    if data["library_name"] != "peft" and data.get("base_model_relation") == "adapter":
        raise ValueError(
            "`base_model_relation` is 'adapter', but this is a whole model: write finetune, merge or quantized"
        )
    for language in listed(data.get("language")):
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):  # YAML reads `no` as false
            raise ValueError(f"`language` has {language!r}: codes have two or three letters, such as 'en'")
    tags = data.get("tags") or []
    if not all(isinstance(tag, str) and tag for tag in tags) or len(set(tags)) != len(tags):
        raise ValueError(f"`tags` must be distinct texts, but are {tags}")


def check_license(data: dict[str, Any]) -> None:
    """The licence is in the Hub's list; any other needs a name and a link."""
    license = data.get("license")
    if license is not None and license not in LICENSES:
        raise ValueError(
            f"`license` is {license!r}, which is not in the Hub's list; write its identifier (apache-2.0, mit, ...), "
            "or `other` with `license_name` and `license_link`"
        )
    for field, form in (("license_name", LICENSE_NAME), ("license_link", LICENSE_LINK)):
        value = data.get(field)
        if (value is not None) != (license == "other"):
            raise ValueError(f"`{field}` goes with `license: other`, and only with it")
        if value is not None and not form.fullmatch(value):
            raise ValueError(f"`{field}` is {value!r}, which does not match {form.pattern}")


def is_repo_id(name: Any) -> TypeGuard[str]:
    """Whether `name` has the form of an id on the Hub, `owner/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str) and "/" in name


def check_repo_id(field: str, name: Any) -> None:
    """Refuse what is not an id on the Hub: a folder of this machine would be a broken link there."""
    if not is_repo_id(name):
        raise ValueError(f"`{field}` has {name!r}, which is not an id on the Hub; write it as owner/name")


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_round_trip(text: str, data: ModelCardData) -> None:
    """What the Hub reads from the card's text must be what was written."""
    read = ModelCard(text).data
    assert read.to_dict() == data.to_dict(), "front matter changed in YAML"
    check_metadata(read.to_dict())


__all__ = ["LICENSES", "check_metadata", "check_repo_id", "check_round_trip", "is_repo_id", "make_metadata"]
