"""Words for the comparison of two requests: those that say nothing, those that say the same, and opposites. Data only.

English; of other languages only the negations. A language that is not here is compared by its numbers, names, code and
words as they stand, which refuses more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Say nothing by themselves: grammar, politeness, and the frames that questions are put into.
EMPTY: Final = _words("""
    a an the this that these those some any i me my mine we us our you your yours he him his she her it its they them
    their is are was were be been being am do does did done doing have has had having will would shall should can could
    may might must to of in on at by for with from into onto about as and or if then than so there here what which who
    whom whose when where why how much many long often soon far old just also too very really quite actually basically
    please thanks thank thankyou hi hello hey hiya morning afternoon evening dear team guys folks sir madam um uh er erm
    hmm ok okay oh well yes yeah yep question wondering wonder curious could possible possibly way ways best
    steps step process procedure method need needs want wants wanted like know tell told explain show help let get
    gets getting got give take takes make makes go going come comes use using used able allowed okay seem supposed
    usually normally generally typically currently ok one ones thing things someone something anyone anything
    mean means say says exactly kind sort etc im ive id ill youre whats hows wheres ill
    each per every bit lot lots exact happen happens try tried look looking find receive received obtain offer offers
    include includes included provide provides cause causes stay stays submit make made reach call contain contains
    put become becomes feature features common certain particular specific available exist exists
    see view utilize utilise leverage require requires required necessary various namely regarding according
    describe description explanation define definition meaning understand pls plz thx r u ur
""")

#: Phrases that are one word of meaning; longer ones first.
PHRASES: Final[tuple[tuple[str, str], ...]] = (
    ("would love", "want"), ("quick question", "question"), ("quick one", "question"), ("not forget", "remember"),
    ("how come", "why"),
    ("how tall", "height"), ("how far", "distance"), ("how big", "size"), ("how large", "size"), ("how deep", "depth"),
    ("how heavy", "weight"), ("how fast", "speed"), ("the number of", "count"), ("versus", "vs"),
    ("difference between", "vs"), ("differences between", "vs"), ("the difference", "vs"), ("the differences", "vs"),
    ("get in touch with", "contact"), ("getting in touch with", "contact"), ("e-mail", "email"), ("wi-fi", "wifi"),
    ("two-factor authentication", "2fa"), ("two factor authentication", "2fa"), ("money back", "refund"),
    ("look up", "check"), ("sign up", "register"), ("signing up", "register"),
    ("signed up", "register"), ("set up", "create"), ("setting up", "create"), ("shut down", "close"),
    ("turn off", "disable"), ("switch off", "disable"), ("turn on", "enable"), ("switch on", "enable"),
    ("log in", "login"), ("log on", "login"), ("sign in", "login"), ("log out", "logout"), ("sign out", "logout"),
    ("opt in", "optin"), ("opt out", "optout"), ("check in", "checkin"), ("check out", "checkout"),
    ("go live", "activate"), ("get rid of", "remove"), ("how much", "price"), ("how many", "count"),
    ("how long", "duration"), ("how old", "age"), ("what time", "time"), ("at the moment", "now"),
    ("right now", "now"), ("as well as", "and"), ("such as", "like"), ("no longer", "not"),
    ("instead of", "rather_than"), ("in order to", "to"), ("fill in", "complete"), ("fill out", "complete"),
    ("back up", "backup"), ("find out", "check"), ("give up", "stop"), ("pick up", "collect"),
)  # fmt: skip

#: Words of one meaning, the first of each line for all of them.
_SAME: Final = """
    cancel end terminate
    close shut
    start begin began begun commence
    create make establish generate produce build construct
    file lodge
    register enrol enroll join
    price cost charge fee pricing
    phone telephone
    child kid
    document paperwork
    travel trip journey
    mute silence
    big large big
    small little tiny
    buy purchase
    fix repair mend
    number digit
    rating score
    repo repository
    book reserve
    cancel scrap
    invite invitation
    dispute challenge
    wrong incorrect
    right correct
    quick fast rapid
    show display
    picture image photo
    error problem issue fault
    luggage baggage bag
    staff personnel
    change alter modify edit switch move swap
    update upgrade
    delete erase remove
    choose select pick
    send dispatch ship
    answer reply respond
    allow permit let
    stop halt
    keep retain
    deadline cutoff
    install setup
    vacation holiday
    flat apartment
    car automobile vehicle
    shop store
    mobile cellphone
    movie film
    autumn fall
    salary wage pay
    job work employment
    location place
    company business firm employer_company
    customer client
    reason cause
    difference distinction
    whole entire
    fetch retrieve acquire
    convert transform
    help assist
    parcel package
    hard difficult
    easy simple
    main primary principal
    improve enhance
    affect influence impact
    example instance
    symptom sign
    doctor physician
    lawyer attorney
    speak talk
    write wrote written author writer
    send sent
    pay paid
    lose lost
    sell sold
    win won
    speak spoke spoken
    choose chose chosen
    think thought
    bring brought
    teach taught
    catch caught
    forget forgot forgotten
    grow grew grown
    fly flew flown
    drive drove driven
    run ran
    eat ate eaten consume
    app application
    info information
    exit quit
    tv television
    advantage benefit pro upside
    disadvantage drawback downside con
    summary summarise summarize recap
    translate translation
    function method
    directory folder
    argument parameter
    list enumerate
    text word wording
    capital capitals
    transaction payment
    link connect
    check verify confirm
    supplier provider
    maximum max most largest highest biggest
    minimum min least smallest lowest
    sad unhappy
    happy glad
    happen occur
    ill sick unwell
    centre center
    colour color
"""

#: Opposites, two on a line; more than two: each of the first side against each of the second, by `/`.
_OPPOSITE: Final = """
    enable activate allow optin / disable deactivate forbid block optout
    accept approve approved / decline reject rejected
    include included / exclude excluded
    increase raise more higher / decrease reduce lower less fewer
    up above over / down below under
    longer bigger larger maximum most / shorter smaller minimum least
    after later / before earlier
    safe legal legit / unsafe dangerous illegal
    best good better outstanding excellent / worst bad worse inadequate poor
    open / close shut
    start begin / stop end finish
    add insert append attach / remove delete subtract detach omit without
    buy / sell
    import download incoming inbound / export upload outgoing outbound
    arrive arrival arriving / depart departure departing
    grant give / revoke withdraw
    lock / unlock
    first / last
    compulsory mandatory required / optional voluntary
    public / private
    hot warm / cold cool
    win gain profit / lose loss
    push / pull
    encrypt encode compress serialize / decrypt decode decompress deserialize
    synchronous sync / asynchronous async
    old / new
    busy / quiet
    early / late
    buyer / seller
    landlord / tenant
    employer / employee
    borrow / lend
    male man men boy / female woman women girl
    adult / child
    puppy dog / kitten cat
    north / south
    east / west
    left / right
    in inside indoor / out outside outdoor
    within during / after
    working works worked / broken faulty fault broke
    home domestic / abroad overseas international
    online / offline
    paper / digital electronic
    checkin / checkout
    login / logout
    am / pm
    positive / negative
    true / false
    read / write
    ascending / descending
    horizontal / vertical
    row / column
    input / output
    request / response
    client / server
    parent / offspring
    all every / some none
    only / also
    always / never
    cheap cheapest / expensive
    pros advantage / cons disadvantage
    debit / credit
    save / spend
    present / absent
    pass / fail
    pro / con
    encourage / discourage
    minimise minimize / maximise maximize
"""

#: Turn a statement into its contrary; of several languages, as far as they are words of their own.
NEGATIONS: Final = _words("""
    not no cant dont doesnt didnt isnt arent wasnt werent hasnt havent hadnt wont wouldnt shouldnt couldnt mustnt
    never without none nobody nothing nowhere neither nor cannot except unable
    nicht kein keine keinen keiner nie niemals ohne
    pas jamais aucun aucune sans
    nunca ningún ninguna ninguno sin tampoco
    non mai nessuno nessuna senza
    não sem nenhum nenhuma
    niet geen nooit zonder
    nie bez nigdy żaden
    не нет без никогда
""")
#: The same for scripts that put no spaces between words.
NEGATION_SIGNS: Final = (
    "不",
    "没",
    "無",
    "无",
    "别",
    "未",
    "ない",
    "ません",
    "않",
    "못",
    "لا",
    "ليس",
    "بدون",
    "नहीं",
    "बिना",
)

#: Small words that tell a language, as far as they are no words of another one here; they say nothing by themselves.
SMALL_WORDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "en": _words(
            "the what how of is are my does do can why which where when who and for you it with your this that"
            " i to have be was were should would we on there at if"
        ),
        "de": _words("der das und ist wie ich nicht ein eine einen mein meine kann wo dem von zu für mit auf warum"),
        "fr": _words("le les est et je ne une mon ma mes comment puis-je où pourquoi quel quelle du dans pour sur"),
        "es": _words("el los las es y cómo mi mis puedo dónde por qué cuál una del con está son quién cuándo"),
        "it": _words("il gli è e mio mia posso dove perché qual quale una della con sono chi"),
        "pt": _words("o os é e como meu minha posso onde porque qual uma da para são quem não em"),
        "nl": _words("de het een en hoe ik mijn kan waar waarom welke voor niet zijn wie"),
        "pl": _words("jak w z na się jest czy moje mój mogę gdzie dlaczego który jaka jaki dla oraz"),
    }
)
#: What is asked for; two requests that ask for different ones of these are different.
ASKED: Final[Mapping[str, str]] = MappingProxyType(
    {word: word for word in ("who", "when", "why", "count", "duration", "where", "how")}
    | {"whose": "who", "whom": "who"}
)

#: Name a day by the day on which they are said.
RELATIVE_DAYS: Final = _words("""
    today tonight tomorrow yesterday now currently heute morgen gestern aujourd'hui demain hier hoy mañana ayer oggi
    domani ieri hoje amanhã ontem vandaag gisteren
""")
RELATIVE_PHRASES: Final = ("this week", "next week", "last week", "this month", "next month", "last month", "this year",
                           "next year", "last year", "this morning", "this evening", "this weekend")  # fmt: skip
#: What changes by the minute, and what asks for something else than before.
VOLATILE: Final = (
    "latest", "breaking news", "stock price", "share price", "exchange rate now", "live score", "current time",
    "what time is it", "weather", "up-to-date", "real-time", "realtime",
)  # fmt: skip
VARIETY: Final = (
    "another one", "a different one", "something else", "random", "surprise me", "one more", "try again",
    "regenerate", "again but", "new idea", "more ideas", "more examples", "another example",
)  # fmt: skip

_FROM_TWO: Final = """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
"""
NUMBER_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {word: str(number) for number, word in enumerate(_FROM_TWO.split(), 2)}
    | {
        "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
        "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000", "zero": "0",
        "dozen": "12", "half": "0.5", "twice": "2x", "double": "2x", "triple": "3x",
        "second": "2.", "third": "3.", "fourth": "4.", "fifth": "5.",
    }
)  # fmt: skip


def same_meaning() -> dict[str, str]:
    """Word to the word that stands for it."""
    lines = (line.split() for line in _SAME.splitlines() if line.strip())
    return {word: words[0] for words in lines for word in words[1:]}


def opposites() -> dict[str, tuple[tuple[int, int], ...]]:
    """Word to the pairs it belongs to: the pair's number, and the side."""
    found: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(line for line in _OPPOSITE.splitlines() if line.strip()):
        for side, words in enumerate(line.split("/")):
            for word in words.split():
                found.setdefault(word, []).append((number, side))
    return {word: tuple(sides) for word, sides in found.items()}
