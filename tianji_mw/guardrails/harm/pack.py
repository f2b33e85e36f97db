"""What a language pack is: `packs/<language>.yaml` maps CONCEPTS to words. All else is the same in all languages.

    language: en
    object: after        # where the object of a verb stands: after it (I hate THEM), before it, or any
    negation: before     # where a negation stands: before what it negates, after it, or around (both are looked at)
    reach: 60            # how many characters apart two things may stand that belong together
    copula: needed       # needed: "women ARE stupid"; free: languages that leave it out, or put it last
    words:
      group: women, gay people, muslim*, "jews"
      violent: >
        kill*, murder*,
        beat* up

Words are separated by commas, or are a YAML list; every value is text (`no` and `on` too). They stand alone, `*` lets
letters follow (`kill*`) or stand before (`*kill`); words of scripts without blanks (Chinese, Japanese) are found
anywhere. Case, accents and look-alikes are folded on both sides. Phrases of several words are welcome.

How words are read:
* THE LONGER ONE WINS. A word inside a longer one of the same pack is not seen: `kill time` as `neutral` hides `kill`,
  `can't stand` under `contempt` hides the negation `can't`. So write what is ambiguous as a phrase of the concept
  `neutral`. A word may stand under several concepts. `kill*` covers the letters `kill` only: for a phrase that has to
  cover more, write it out (`killing time`, `kills time`).
* Rules ask for several concepts in one sentence and near each other (`reach`), so a word that is harmless alone may be
  listed. Only `slur`, `suicidal`, `incite`, `explicit`, `sex_crime` and `hate_idea` are taken alone; `crime` nearly so.
* Packs do not see each other's words, and a sentence is read by the packs that know most of it: function words (`be`,
  `i`, `you`, `negation`) matter for that. No word of one Latin letter.

The format may grow (new concepts, new options with defaults), but what is here stays as it is.

WHO
  group           protected groups as nouns, with their usual phrases: women, gays, gay people, muslims, immigrants,
                  refugees, the disabled, black people, jews, trans people, mexicans, old people. Nothing that is
                  not protected (bankers, vegans, artists, policemen).
  group_adjective adjectives and nouns that make a group only next to a `person` word: gay, black, trans, disabled,
                  muslim, female. Not needed where inflected forms under `group` are enough.
  person          other human beings, as objects: someone, people, person, man, my wife, neighbour, crowd, president,
                  my boss, him, her. Not you.
  minor           children: child, kids, little girl, schoolgirl, 13 year old, my daughter, underage.
  you             second person: you, your, u.       they    third person plural: they, them, these people, their.
  i               first person: i, me, my, we, us, our, i'm.
  others          somebody else who speaks, thinks or hates: people who, anyone who, those who, he said, he hates.
HATE
  slur            slurs that mean nothing else, with plurals. Found alone (unless reclaimed: with `i` and no abuse).
  slur_ambiguous  slurs that have a harmless meaning, or are used in a friendly way (dyke, bitch, cripple, retard):
                  count with `you`, or with abuse.
  dehumanising    nouns and phrases that deny worth: scum, vermin, cockroaches, animals, parasites, disease, inferior,
                  worthless, subhuman, "make me sick", "disgust me"; insulting nouns (whores, motherfuckers, bastards).
  negative        negative adjectives and nouns of character: stupid, disgusting, evil, dangerous, criminals, liars.
  contempt        verbs with an object: hate, despise, loathe, can't stand, am sick of, have no respect for, fuck (as
                  "fuck them").
  positive        what hate denies: like, respect, trust, deserve, worth, welcome, equal, human, rights, belong, good,
                  intelligent. Negated it is hate ("women are not human"), else it calms.
  allow           what one does about a wrong: allow, tolerate, support, stand by, condone (list them under `positive`
                  too): "never tolerate" turns over the bad thing that follows.
  exclude         deport*, get rid of, ban, send back, lock up, throw out, discriminate, bully, silence, segregate.
  hate_idea       slogans, whole: white power, heil hitler, gas the jews, go back to your country.
  hate_genre      kinds of hateful text: racist joke*, sexist poem, hate speech, antisemitic article. With a `request`.
VIOLENCE
  violent         verbs of violence that need a human object: kill*, shoot, stab*, beat, hang, burn, poison*, attack*,
                  rape*, torture*, execute*, strangle*; also stalk, kidnap, drug (somebody).
  die             what is wished on others: die, be dead, suffer, burn in hell, be shot, death to. All forms.
  crime           violent crimes as nouns or whole phrases: mass shooting, terrorist attack, get away with murder,
                  hire a hitman, dispose of a body, school shooting, honor killing, human trafficking, commit murder.
  weapon          bomb*, explosive*, pipe bomb, nerve agent, ricin, ghost gun, silencer, molotov cocktail, poison.
  material        parts and substances of weapons: ammonium nitrate, detonator*, fuse, blasting cap, thermite.
  make            make, build, construct, assemble, produce, get, buy, smuggle, plant, detonate, set off.
  gore            blood*, entrails, dismember*, decapitat*, mutilat*, guts.
  praise          glory to, hero*, deserved it, did the right thing, well done, long live (of violence).
  villain         terrorists and mass murderers: isis, hitler, al-qaeda. Only with `praise`.
SELF-HARM
  suicidal        intent or the act, first person, whole phrases: want to die, kill myself, end my life, cut myself,
                  no reason to live, better off without me.
  suicide         the subject: suicide, suicidal, self-harm, cutting, anorexia, overdose*.
  means           ways: painless, noose, lethal dose, sleeping pills, slit my wrists, jump off a bridge, how many pills,
                  without anyone noticing.
  incite          go kill yourself, kys, you should end your life, nobody would miss you.
  starve          eating disorders as a goal: thinspo, pro-ana, purge after eating, hide that i'm not eating.
SEXUAL
  explicit        words and phrases of pornography that mean nothing else: blowjob, cum on, fuck me, deepthroat.
  sexual          words of sex that are also medical or romantic: penis, breasts, naked, orgasm, sex,
                  seduce*, erection. Two or more together count.
  sensual         weaker still, and everyday words too: kiss*, thighs, moan*, wet, lap. Two of them with a `sexual` one.
  porn            kinds of sexual content: porn, erotica, sex scene, nudes, smut, sexting. With `request` or `make`.
  sex_crime       child porn*, csam, revenge porn, molest*, rape fantasy, upskirt*, sextort*, groom (a child), incest.
FRAME
  request         how to, how do i, how can i, tell me how, give me instructions, steps to, best way to, write a
                  guide, help me, where can i buy, explain how, i want to, teach me.
  write           write, create, generate, compose, draw, tell (me a story): asks for a text or an image.
  should          norms and wishes: should, must, ought to, deserve to, need to, let's, i hope, i wish, it's time to.
  will            threats: will, i'll, gonna, am going to, want to, about to, can't wait to.
  be              are, is, am, were, be, being, 're.
  all             all, every, each, any of: "kill all ...".
  negation        not, n't forms (don't, can't, isn't), never, no, nobody, without, nothing. Not "not only" or "nothing
                  but" (put those under `neutral`).
  but             words that begin a clause: but, because, although, while. Negation does not reach over them.
CONTEXT (these lower what they stand with; each only in its own sentence, and none for every category)
  say             calling, saying, say that, call*, tell people that, shouting, slogans like, the word: reports speech.
  wrong           disapproval: unacceptable, is wrong, offensive, shouldn't say, racist of, is hate speech, how dare,
                  disgraceful, no place for, condemn*, stop saying, not ok to.
  prevent         prevent*, protect*, stop (somebody), avoid, report, survive, victim*, support, help (those who),
                  recover*, cope, hotline, defend, against (attacks), treat*, warning signs, awareness.
  inform          what is, definition, history, when did, who was, statistics, why did, law*, study, causes of, meaning.
  fiction         in the game, minecraft, novel, movie, character, book, in call of duty, dungeon*, actor.
  refusal         i can't help, i'm sorry but, i cannot assist, as an ai, i won't, it is illegal, not appropriate.
  small           not looked for: ordinary words that keep the second look (tricks.py) straight. Function words, to take
                  words apart that were written together (deathto); and words that only look like a misspelt word
                  of this pack (`rash` is not `trash`, `back` not `black`).
  neutral         homonyms and fixed phrases that hide the words inside them: kill a process, kill time, shoot a photo,
                  execute a query, blow up a balloon, nothing but, not only, drop dead gorgeous, sex education.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Final, Literal, NamedTuple, cast, get_args

import yaml

from tianji_mw.errors import SetupError
from tianji_mw.guardrails.folding import fold

Concept = Literal[
    "group", "group_adjective", "person", "minor", "you", "they", "i", "others",
    "slur", "slur_ambiguous", "dehumanising", "negative", "contempt", "positive", "exclude", "hate_idea", "hate_genre",
    "violent", "die", "crime", "weapon", "material", "make", "gore", "praise", "villain",
    "suicidal", "suicide", "means", "incite", "starve",
    "explicit", "sexual", "porn", "sex_crime",
    "request", "write", "should", "will", "be", "all", "negation", "but",
    "say", "wrong", "prevent", "inform", "fiction", "refusal", "neutral",
    "allow", "sensual", "small",
]  # fmt: skip
#: Each concept is one bit.
BIT: Final[Mapping[str, int]] = {concept: 1 << at for at, concept in enumerate(get_args(Concept))}


class Pack(NamedTuple):
    """The words of one language, folded, each with the bits of its concepts."""

    language: str
    words: Mapping[str, int]
    object: Literal["after", "before", "any"] = "after"
    negation: Literal["before", "after", "around"] = "before"
    reach: int = 60
    copula: Literal["needed", "free"] = "needed"


def load() -> list[Pack]:
    """All packs of the package, in the order of their names. Raises SetupError about one that is no pack."""
    folder = resources.files("tianji_mw.guardrails.harm") / "packs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return [read(file.name, file.read_text("utf-8")) for file in files]


def read(name: str, text: str) -> Pack:
    """One pack. `name` is for messages."""
    try:
        # Of strings alone: `no` and `on` are words here.
        data = yaml.load(text, getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # noqa: S506 - makes no objects
    except yaml.YAMLError as error:
        raise SetupError(f"language pack {name}: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("words"), dict):
        raise SetupError(f"language pack {name}: no mapping with `words`")
    words: dict[str, int] = {}
    for concept, listed in data["words"].items():
        if concept not in BIT:
            raise SetupError(f"language pack {name}: no concept {concept!r}; known are {', '.join(BIT)}")
        for word in _listed(listed):
            words[word] = words.get(word, 0) | BIT[concept]
    return Pack(words=words, **_options(name, data))


def _listed(value: Any) -> Iterator[str]:
    for entry in value if isinstance(value, list) else str(value).split(","):
        word = fold(" ".join(str(entry).split()).strip('"'))
        if word.strip("*"):
            yield word


def _options(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {key: value for key, value in data.items() if key != "words"}
    allowed = {
        "object": ("after", "before", "any"),
        "negation": ("before", "after", "around"),
        "copula": ("needed", "free"),
    }
    for key, value in options.items():
        if key not in Pack._fields or (key in allowed and value not in allowed[key]):
            raise SetupError(f"language pack {name}: {key}: {value!r} is not known here")
    if "reach" in options:
        if not cast(str, options["reach"]).isdigit():
            raise SetupError(f"language pack {name}: reach is a number of characters")
        options["reach"] = int(options["reach"])
    options.setdefault("language", name.partition(".")[0])
    return options
