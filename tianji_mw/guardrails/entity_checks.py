"""Check digits of cards, accounts and national ids, for `entities.py`. Pure; each takes an id without separators.

Sources: ISO 7812 (Luhn), ISO 13616 (IBAN), ISO 7064; BIP 173 and 350 (bech32); national registers' own descriptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

#: Length of an IBAN by country, as the SWIFT registry lists them.
IBAN_LENGTHS: Final = {
    code: int(length)
    for length, codes in (
        item.split(":")
        for item in (
            "15:NO", "16:BE", "18:DK FI FO GL NL SD", "19:MK SI", "20:AT BA EE KZ LT LU XK", "21:CH HR LI LV",
            "22:BG BH CR DE GB GE IE ME RS VA", "23:AE GI IL IQ OM SO TL", "24:AD CZ ES MD PK RO SA SE SK TN VG DZ",
            "25:AO CV LY PT ST", "26:IS TR", "27:BF BI CF CG CM DJ FR GA GQ GR IT MC MG MR SM", "28:AL AZ BJ BY CI",
            "28:CY DO GT GW HN HU LB ML NE NI PL SN SV TG", "29:BR EG PS QA UA",
            "30:JO KW MU", "31:MT SC", "32:LC", "33:RU",
        )
    )
    for code in codes.split()
}  # fmt: skip
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VERHOEFF_D: Final = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_VERHOEFF_P: Final = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip
#: The values of a fiscal code's characters at odd places.
_ODD: Final = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
            2,
            4,
            18,
            20,
            11,
            3,
            6,
            8,
            12,
            14,
            16,
            10,
        )
        + (22, 25, 24, 23),
        strict=True,
    )
)


def luhn(digits: str) -> bool:
    total = sum(int(d) for d in digits[-1::-2]) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0


def card(digits: str) -> bool:
    """Luhn, and a number range that some card has."""
    length = len(digits)
    two, four = int(digits[:2]), int(digits[:4])
    known = (
        (digits[0] == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or (two in (30, 36, 38, 39) and 14 <= length <= 19)
        or (two == 35 and 16 <= length <= 19)
        or (four in (1800, 2131) and length == 15)
        or (two in (60, 62, 64, 65, 81) and 16 <= length <= 19)
        or (two in (50, 56, 57, 58, 60, 61, 63, 66, 67, 68, 69) and 12 <= length <= 19)
    )
    return known and luhn(digits) and len(set(digits)) > 1


def iban(text: str) -> bool:
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def weighted(digits: str, weights: Sequence[int], modulus: int, rest: int = 0) -> bool:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True)) % modulus == rest


def verhoeff(digits: str) -> bool:
    state = 0
    for place, digit in enumerate(reversed(digits)):
        state = int(_VERHOEFF_D[state][int(_VERHOEFF_P[place % 8][int(digit)])])
    return state == 0 and digits[0] not in "01"


def is_date(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[int(month) - 1]


def ssn(digits: str) -> bool:
    """A number that the US may have given out; 078-05-1120 stood in wallets for sale."""
    given = digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"
    return given and digits not in ("078051120", "123456789", "219099999") and len(set(digits)) > 1


def itin(digits: str) -> bool:
    group = int(digits[3:5])
    return digits[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or group >= 94)


def tckn(digits: str) -> bool:
    """Türkiye: two check digits."""
    ten = (7 * sum(int(d) for d in digits[0:9:2]) - sum(int(d) for d in digits[1:8:2])) % 10
    return digits[0] != "0" and ten == int(digits[9]) and sum(int(d) for d in digits[:10]) % 10 == int(digits[10])


def cpf(digits: str) -> bool:
    """Brazil: two check digits."""
    for length in (9, 10):
        total = sum(int(d) * (length + 1 - i) for i, d in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return len(set(digits)) > 1


def tax_id(digits: str) -> bool:
    """Germany: ISO 7064, mod 11, 10."""
    state = 10
    for digit in digits[:10]:
        state = ((int(digit) + state - 1) % 10 + 1) * 2 % 11
    return digits[0] != "0" and (11 - state) % 10 == int(digits[10])


def nir(digits: str) -> bool:
    """France."""
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def south_african(digits: str) -> bool:
    return is_date(digits[2:4], digits[4:6]) and luhn(digits)


def swedish(digits: str) -> bool:
    return is_date(digits[-8:-6], digits[-6:-4]) and luhn(digits[-10:])


def thai(digits: str) -> bool:
    return weighted(digits, (*range(13, 1, -1), 1), 11) or weighted(digits, (*range(13, 1, -1), 1), 11, 10)


def abn(digits: str) -> bool:
    """Australia: a business."""
    return weighted(str(int(digits[0]) - 1) + digits[1:], (10, *range(1, 20, 2)), 89)


def tfn(digits: str) -> bool:
    """Australia: a taxpayer."""
    return weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10), 11)


def medicare(digits: str) -> bool:
    """Australia: health."""
    return weighted(digits[:8], (1, 3, 7, 9, 1, 3, 7, 9), 10, int(digits[8]))


def mbi(text: str) -> bool:
    """US Medicare: letters that look like digits are not used."""
    return not set(text) & set("BILOSZ")


def nino(text: str) -> bool:
    """UK: prefixes that are never given out."""
    head = text[:2].upper()
    return head not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ") and not set(head) & set("DFIQUV") and head[1] != "O"


def dni(text: str) -> bool:
    """Spain: DNI, or NIE with X, Y or Z before it."""
    head = str("XYZ".index(text[0])) + text[1:-1] if text[0] in "XYZ" else text[:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(head) % 23] == text[-1]


def hetu(text: str) -> bool:
    """Finland: date, century (its sign may be a hyphen, which is gone here), number and a check sign."""
    number = int(text[:6] + text[-4:-1])
    return is_date(text[2:4], text[:2]) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == text[-1]


def fiscal_code(text: str) -> bool:
    """Italy."""
    total = sum(_ODD[char] for char in text[0:15:2])
    total += sum(int(char) if char.isdigit() else ord(char) - 65 for char in text[1:15:2])
    return chr(65 + total % 26) == text[15]


def bitcoin(text: str) -> bool:
    """Base58Check, or bech32 with either of its constants."""
    if text.startswith("bc1"):
        state = 1
        for value in (3, 3, 0, 2, 3, *(_BECH32.index(char) for char in text[3:])):
            top, state = state >> 25, (state & 0x1FFFFFF) << 5 ^ value
            for bit, mask in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
                state ^= mask if top >> bit & 1 else 0
        return state in (1, 0x2BC830A3)
    number = 0
    for char in text:
        number = number * 58 + _BASE58.index(char)
    if number >> 200:
        return False
    data = number.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]
