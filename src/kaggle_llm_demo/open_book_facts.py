"""What the articles of demo-open-book tell of places, species and machines, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One thing that an article may tell. {it} is its name, {value} the fact."""

    name: str
    values: str
    """What its values are: a key of WORDS, or person, year, name, or "low-high unit"."""
    told: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of article. {stem} is the name that look-alikes share, {it} the whole name."""

    titles: tuple[str, ...]
    intros: tuple[str, ...]
    facts: tuple[Fact, ...]
    fillers: tuple[str, ...]


WORDS: dict[str, tuple[str, ...]] = {
    "trade": (
        *("glass blowing", "salt mining", "rope making", "bell casting", "beekeeping", "paper milling", "tanning"),
        *("clock making", "slate quarrying", "barrel making", "silk weaving", "charcoal burning", "oyster farming"),
    ),
    "dish": (
        *("smoked eel", "barley dumplings", "plum soup", "goat cheese pie", "pickled turnips", "chestnut bread"),
        *("honey pancakes", "lentil stew", "roast pigeon", "nettle pudding", "walnut sausage", "crab porridge"),
    ),
    "month": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
    "stone": (
        *("red sandstone", "black basalt", "white marble", "grey granite", "yellow brick", "green slate"),
        *("pale limestone", "oak timber", "rammed earth", "river pebbles"),
    ),
    "beast": ("a heron", "a bear", "an otter", "a ram", "a lynx", "a swan", "a badger", "a stag", "a raven", "a toad"),
    "habitat": (
        *("salt marshes", "pine forests", "lava fields", "river deltas", "chalk cliffs", "alpine meadows"),
        *("mangrove swamps", "dry heaths", "limestone caves", "reed beds", "stony deserts", "cloud forests"),
    ),
    "food": (
        *("snails", "pine nuts", "dragonflies", "moss", "crayfish", "wild figs", "ants", "mushrooms", "minnows"),
        *("acorns", "earthworms", "seaweed", "beetle larvae"),
    ),
    "colour": (
        *("crimson", "turquoise", "lemon yellow", "violet", "snow white", "jet black", "copper", "emerald", "orange"),
        *("silver", "rust brown", "sky blue"),
    ),
    "sound": (
        *("a creaking door", "a flute", "dripping water", "a distant drum", "a whistling kettle", "tearing cloth"),
        *("a rusty pump", "a small bell", "laughter", "a cork leaving a bottle"),
    ),
    "bed": (
        *("hollow logs", "old burrows", "tall grass", "rock crevices", "abandoned nests", "the crowns of palms"),
        *("floating leaves", "heaps of bark", "barn roofs", "thorn bushes"),
    ),
    "fuel": (
        *("peat", "lamp oil", "charcoal", "wood gas", "alcohol", "pressed straw", "coal dust", "turpentine"),
        *("fish oil", "compressed air", "birch pellets"),
    ),
    "metal": (
        *("brass", "cast iron", "zinc", "enamelled steel", "copper sheet", "lacquered beech", "aluminium", "bronze"),
        *("tinned plate", "hard rubber"),
    ),
    "task": (
        *("threshing rye", "pumping mines dry", "printing maps", "sorting letters", "sawing planks", "peeling apples"),
        *("spinning flax", "digging canals", "washing wool", "rolling tobacco", "stamping coins", "polishing lenses"),
    ),
    "flaw": (
        *("leaking valves", "a weak axle", "broken springs", "blocked nozzles", "slipping belts", "loose rivets"),
        *("cracked bearings", "damp wiring", "a warped frame", "worn gears"),
    ),
}

PLACES = Kind(
    titles=("Upper {stem}", "Port {stem}", "{stem} Bridge", "New {stem}", "{stem} Mill", "Saint {stem}"),
    intros=(
        "{it} is a market town in the lowlands.",
        "{it} is a walled town near the old border.",
        "{it} is a small town on a trading road.",
        "The town of {it} lies in a wide valley.",
    ),
    facts=(
        Fact(
            "founder",
            "person",
            ("Its founder was {value}.", "{it} was founded by {value}.", "{value} laid its first stone."),
            ("Who founded {it}?", "Who was the founder of {it}?", "By whom was the town of {it} founded?"),
        ),
        Fact(
            "founded",
            "year",
            (
                "The founding charter dates from {value}.",
                "{it} was founded in {value}.",
                "Its history began in {value}.",
            ),
            ("When was {it} founded?", "In which year was {it} founded?", "From which year is the charter of {it}?"),
        ),
        Fact(
            "fire",
            "year",
            ("A great fire destroyed half of {it} in {value}.", "In {value} a fire burned down the northern quarter."),
            ("When did a great fire destroy part of {it}?", "In which year did {it} burn?"),
        ),
        Fact(
            "river",
            "name",
            ("{it} stands on the river {value}.", "The river {value} flows past its walls."),
            ("Which river flows past {it}?", "On which river does {it} stand?"),
        ),
        Fact(
            "trade",
            "trade",
            ("For centuries {it} has lived on {value}.", "Most families earn their living by {value}."),
            ("What does {it} live on?", "By which trade do most families of {it} earn their living?"),
        ),
        Fact(
            "people",
            "800-9900 people",
            ("At the last count {it} had {value}.", "{value} were counted within its walls."),
            ("How many people live in {it}?", "How large is the population of {it}?"),
        ),
        Fact(
            "dish",
            "dish",
            ("Travellers praise the local {value}.", "On Sundays one eats {value} in {it}."),
            ("Which dish is {it} known for?", "What does one eat in {it} on Sundays?"),
        ),
        Fact(
            "fair",
            "month",
            ("The yearly fair is held in {value}.", "Every {value} {it} has a fair of three days."),
            ("In which month is the fair of {it} held?", "When does {it} have its yearly fair?"),
        ),
        Fact(
            "stone",
            "stone",
            ("The houses of {it} are built of {value}.", "Its walls are of {value}."),
            ("What are the houses of {it} built of?", "Which building material do the walls of {it} have?"),
        ),
        Fact(
            "bridge",
            "person",
            ("The long bridge of {it} was drawn by {value}.", "{value} was the architect of its bridge."),
            ("Who was the architect of the bridge of {it}?", "Who drew the plans of the bridge in {it}?"),
        ),
        Fact(
            "arms",
            "beast",
            ("The coat of arms shows {value}.", "On the seal of {it} there is {value}."),
            ("Which animal is on the coat of arms of {it}?", "What does the seal of {it} show?"),
        ),
        Fact(
            "tower",
            "21-96 metres",
            ("The watch tower of {it} is {value} high.", "From its tower, {value} high, one sees the sea."),
            ("How high is the tower of {it}?", "What is the height of the watch tower in {it}?"),
        ),
    ),
    fillers=(
        "The streets are narrow and steep.",
        "A museum opens on request.",
        "There is no railway station within a day's walk.",
        "Several poets have complained about its inns.",
        "The mayor is elected for two years.",
    ),
)

SPECIES = Kind(
    titles=("crested {stem}", "marsh {stem}", "lesser {stem}", "spotted {stem}", "long-tailed {stem}", "dwarf {stem}"),
    intros=(
        "The {it} is a shy animal of the evening.",
        "The {it} is a sociable animal that lives in groups.",
        "Few have seen the {it}, an animal of quiet habits.",
        "The {it} is a nimble climber and a poor swimmer.",
    ),
    facts=(
        Fact(
            "found",
            "person",
            ("The {it} was first described by {value}.", "{value} was the first to describe it."),
            ("Who first described the {it}?", "Who was the first to describe the {it}?"),
        ),
        Fact(
            "described",
            "year",
            ("Its first description was printed in {value}.", "Science has known the {it} since {value}."),
            ("Since when has science known the {it}?", "In which year was the {it} first described?"),
        ),
        Fact(
            "protected",
            "year",
            ("Hunting it was forbidden in {value}.", "The {it} has been protected by law since {value}."),
            ("Since when has the {it} been protected?", "In which year was hunting the {it} forbidden?"),
        ),
        Fact(
            "habitat",
            "habitat",
            ("The {it} lives in {value}.", "One meets it in {value} only."),
            ("Where does the {it} live?", "What is the habitat of the {it}?"),
        ),
        Fact(
            "food",
            "food",
            ("It feeds on {value}.", "The {it} eats little but {value}."),
            ("What does the {it} eat?", "On what does the {it} feed?"),
        ),
        Fact(
            "throat",
            "colour",
            ("The throat is {value}.", "Adults of the {it} have a throat of {value}."),
            ("Which colour is the throat of the {it}?", "What colour does the throat of an adult {it} have?"),
        ),
        Fact(
            "tail",
            "colour",
            ("The tip of the tail of the {it} is {value}.", "Its tail ends in a tuft of {value}."),
            ("Which colour is the tip of the tail of the {it}?", "What colour is the tail tuft of the {it}?"),
        ),
        Fact(
            "call",
            "sound",
            ("Its call sounds like {value}.", "The {it} calls at dawn, and one thinks of {value}."),
            ("What does the call of the {it} sound like?", "Of what does the call of the {it} make one think?"),
        ),
        Fact(
            "bed",
            "bed",
            ("By day it sleeps in {value}.", "The {it} sleeps in {value}."),
            ("Where does the {it} sleep?", "In what does the {it} sleep by day?"),
        ),
        Fact(
            "moult",
            "month",
            ("It changes its coat in {value}.", "In {value} the {it} moults."),
            ("In which month does the {it} moult?", "When does the {it} change its coat?"),
        ),
        Fact(
            "length",
            "11-98 centimetres",
            ("Fully grown it measures {value}.", "The {it} reaches a length of {value}."),
            ("How long is a fully grown {it}?", "Which length does the {it} reach?"),
        ),
        Fact(
            "age",
            "3-40 years",
            ("The oldest {it} lived for {value}.", "It can reach an age of {value}."),
            ("Which age can the {it} reach?", "How long did the oldest {it} live?"),
        ),
    ),
    fillers=(
        "Its tracks are easily mistaken for those of a hare.",
        "Zoos have rarely kept it for long.",
        "Old sailors thought that it brought luck.",
        "Young ones are blind for a week.",
        "Little is known about its winters.",
    ),
)

MACHINES = Kind(
    titles=("{stem} Compact", "{stem} Model C", "Royal {stem}", "{stem} Standard", "Double {stem}", "{stem} Junior"),
    intros=(
        "The {it} was an engine of the early workshops.",
        "The {it} is a machine that every museum would like to own.",
        "The {it} is a heavy machine with two levers.",
        "Among old engines the {it} is a rare one.",
    ),
    facts=(
        Fact(
            "inventor",
            "person",
            ("The {it} was invented by {value}.", "Its inventor was {value}.", "{value} drew the first plans."),
            ("Who invented the {it}?", "Who was the inventor of the {it}?", "Whose invention was the {it}?"),
        ),
        Fact(
            "built",
            "year",
            ("The first {it} was built in {value}.", "It has been made since {value}."),
            ("When was the first {it} built?", "Since which year has the {it} been made?"),
        ),
        Fact(
            "accident",
            "year",
            ("A boiler of the {it} burst in {value}.", "After an accident in {value} it got a second brake."),
            ("When did the {it} have an accident?", "In which year did a {it} have an accident?"),
        ),
        Fact(
            "fuel",
            "fuel",
            ("It runs on {value}.", "The fuel of the {it} is {value}."),
            ("What does the {it} run on?", "Which fuel does the {it} need?"),
        ),
        Fact(
            "task",
            "task",
            ("It was meant for {value}.", "Workshops used the {it} for {value}."),
            ("What was the {it} used for?", "For which work was the {it} meant?"),
        ),
        Fact(
            "casing",
            "metal",
            ("The casing is of {value}.", "The {it} has a casing of {value}."),
            ("What is the casing of the {it} made of?", "Of which material is the casing of the {it}?"),
        ),
        Fact(
            "weight",
            "35-980 kilograms",
            ("The {it} weighs {value}.", "With a full tank it weighs {value}."),
            ("How heavy is the {it}?", "What does the {it} weigh?"),
        ),
        Fact(
            "maker",
            "name",
            ("It was made in the works of {value}.", "The factory of the {it} stood in {value}."),
            ("Where did the factory of the {it} stand?", "In the works of which town was the {it} made?"),
        ),
        Fact(
            "restorer",
            "person",
            ("The last one was repaired by {value}.", "{value} restored the only {it} that is left."),
            ("Who restored the last {it}?", "By whom was the last {it} repaired?"),
        ),
        Fact(
            "noise",
            "sound",
            ("At work it sounds like {value}.", "The noise of the {it} is like {value}."),
            ("What does the {it} sound like at work?", "What is the noise of the {it} like?"),
        ),
        Fact(
            "flaw",
            "flaw",
            ("Its owners complained about {value}.", "The {it} was known for {value}."),
            ("What did owners of the {it} complain about?", "For which flaw was the {it} known?"),
        ),
        Fact(
            "paint",
            "colour",
            ("All of them were painted in {value}.", "The wheels of the {it} are {value}."),
            ("In which colour was the {it} painted?", "Which colour do the wheels of the {it} have?"),
        ),
    ),
    fillers=(
        "A manual of sixty pages came with it.",
        "It could be taken apart in an afternoon.",
        "Two people were needed to start it.",
        "Copies were sold under many other names.",
        "Its drawings were lost in a flood.",
    ),
)

KINDS = (PLACES, SPECIES, MACHINES)
