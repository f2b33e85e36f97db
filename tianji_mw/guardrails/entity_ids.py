"""National ids, as tables for `entities.py`. Names are Presidio's; the check digits are in `entity_checks.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from tianji_mw.guardrails import entity_checks as checks


class Id(NamedTuple):
    """A national id: its form, whether its check digits are right, and the words without which it is not believed."""

    label: str
    form: re.Pattern[str]
    right: Callable[[str], bool]
    context: re.Pattern[str] | None = None


def _id(label: str, form: str, right: Callable[[str], bool], context: str = "") -> Id:
    # Digits of other scripts count for `\d`, and in no check.
    form = form.replace(r"\d", "[0-9]")
    return Id(label, re.compile(rf"(?:{form})(?![\w-])"), right, re.compile(context) if context else None)


#: Ids made of digits alone.
NUMBERS: Final = (
    _id("TR_NATIONAL_ID", r"\d{11}", checks.tckn),
    _id("BR_CPF", r"\d{3}\.\d{3}\.\d{3}-\d\d", checks.cpf),
    _id("BR_CPF", r"\d{11}", checks.cpf, "cpf"),
    _id("US_SSN", r"\d{9}|\d{3}-\d{6}|\d{5}-\d{4}", checks.ssn, r"\bssn\b|social secu"),
    _id("FR_NIR", r"[12] ?\d\d ?(?:0\d|1[0-2]) ?\d\d ?\d{3} ?\d{3} ?\d\d", checks.nir),
    _id("ZA_ID_NUMBER", r"\d{10}[01]\d\d", checks.south_african, r"\bid\b|south|identity|resident"),
    _id("KR_RRN", r"\d{6}-?[1-4]\d{6}", lambda d: checks.is_date(d[2:4], d[4:6]), "rrn|resident|주민"),
    _id("SE_PERSONNUMMER", r"(?:19|20)?\d{6}[-+]?\d{4}", checks.swedish, "person|swed|identity"),
    _id("PL_PESEL", r"\d{11}", lambda d: checks.weighted(d, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10), "pesel"),
    _id("DE_TAX_ID", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", checks.tax_id, "steuer|tax|idnr"),
    _id("IN_AADHAAR", r"\d{4}[ -]?\d{4}[ -]?\d{4}", checks.verhoeff, "aadha|uidai|आधार"),
    _id("CA_SIN", r"[1-79]\d\d[ -]?\d{3}[ -]?\d{3}", checks.luhn, r"\bsin\b|social insur|\bnas\b|assurance soc"),
    _id("NL_BSN", r"\d{9}", lambda d: checks.weighted(d, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11), "bsn|burgerservice|sofi"),
    _id("UK_NHS", r"\d{3}[ -]?\d{3}[ -]?\d{4}", lambda d: checks.weighted(d, range(10, 0, -1), 11), r"\bnhs\b"),
    _id("US_NPI", r"[12]\d{9}|[12]\d{3}-\d{3}-\d{3}", lambda d: checks.luhn("80840" + d), r"\bnpi\b|provider"),
    _id("ABA_ROUTING_NUMBER", r"[0-3678]\d{8}", lambda d: checks.weighted(d, (3, 7, 1) * 3, 10), "routing|aba"),
    _id("AU_ABN", r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}", checks.abn, r"\babn\b|business number"),
    _id("AU_TFN", r"\d{3} ?\d{3} ?\d{3}", checks.tfn, r"\btfn\b|tax file"),
    _id("AU_MEDICARE", r"[2-6]\d{3} ?\d{5} ?\d", checks.medicare, "medicare"),
    _id("TH_TNIN", r"[1-8]\d{12}", checks.thai, r"tnin|thai|บัตร|national id"),
)
#: Ids with letters in them.
LETTERED: Final = (
    _id("IT_FISCAL_CODE", r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", checks.fiscal_code),
    _id("FI_PERSONAL_IDENTITY_CODE", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", checks.hetu),
    _id("ES_NIE", r"[XYZ]-?\d{7}-?[A-Z]", checks.dni),
    _id("ES_NIF", r"\d{7,8}-?[A-Z]", checks.dni),
    _id("UK_NINO", r"[A-CEGHJ-PR-TW-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-D]", checks.nino, r"nino|insurance|\bni\b"),
    _id("IN_PAN", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", str.isalnum, r"\bpan\b|permanent account|tax"),
    _id("US_MBI", r"[1-9][AC-Y][AC-Y0-9]\d-?[AC-Y][AC-Y0-9]\d-?[AC-Y]{2}\d\d", checks.mbi, "medicare|mbi"),
)
