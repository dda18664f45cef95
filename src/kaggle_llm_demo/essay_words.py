"""The words of demo-essays: proposals, arguments with their reasons, and what an answer had better not say."""

from __future__ import annotations

QUESTIONS = (
    "Should our school {}? Say what you think and give your reasons.",
    "Some want our school to {}. Are you for it or against it? Explain why.",
    "The head teacher asks whether we should {}. Write what you would answer.",
)
PROPOSALS = (
    *("start lessons at nine o'clock", "keep bees on the roof", "close its street to cars", "give up homework"),
    *("teach chess in the fifth year", "open the library on Saturdays", "sell fruit instead of sweets"),
    *("let pupils bring their dogs", "put a garden behind the gym", "ban telephones in the breaks"),
    *("have its own radio station", "cook lunch with the pupils", "spend a week in the mountains every year"),
    *("lend bicycles to everybody", "paint the corridors in bright colours", "teach first aid to all classes"),
    *("hold one lesson a day outdoors", "replace books by tablets", "begin every day with music"),
    *("share its sports field with the town", "let older pupils teach younger ones", "run a repair workshop"),
    *("stop ringing the bell", "grade group work", "show films on Friday afternoons", "build a climbing wall"),
    *("collect rain water for the toilets", "invite a writer every month", "have a second long break"),
    *("offer Italian as a subject", "let pupils choose their seats", "clean the classrooms without cleaners"),
    *("take part in a swimming contest", "print a newspaper", "stay open in the holidays", "plant fifty trees"),
)
# What it would do → why, of which one is written.
FOR = {
    "it would save money": ("less has to be bought every year", "the old way costs far more than people think"),
    "everybody would learn more": ("we remember what we have done ourselves", "one listens better to what is new"),
    "it would be healthier": ("we sit for six hours a day as it is", "tired pupils fall ill more often"),
    "the classes would grow together": ("people who share a task begin to talk", "nobody would be left out any more"),
    "it would be fairer": (
        "not every family can pay for such things at home",
        "one rule would hold for all of us",
    ),
    "the teachers would have more time": (
        "they would not repeat everything",
        "the older ones take over a part",
    ),
    "we would learn to decide for ourselves": ("nobody tells us each step", "a mistake there hurts nobody"),
    "it would help the whole town": ("the neighbours could use it too", "parents would come and lend a hand"),
    "it would make the mornings calmer": ("there would be less pushing at the doors", "nobody has to hurry then"),
}
AGAINST = {
    "it would cost too much": ("somebody has to be paid for looking after it", "things like that break every winter"),
    "we would lose time for lessons": (
        "an hour there is missing elsewhere",
        "the exams stay as hard as they are",
    ),
    "it would be dangerous": ("nobody can watch eighty children at once", "two pupils were hurt last year by less"),
    "only a few would gain from it": ("most of us live too far away", "those who need it most would not come"),
    "it would be too loud": ("the rooms lie next to each other", "the little ones could not concentrate"),
    "the teachers would have to work longer": ("all of it must be prepared and tidied up", "nobody else has the keys"),
    "families would have trouble with it": (
        "parents cannot change when they work",
        "a small child needs its brothers",
    ),
    "there are better uses of the room": (
        "we have waited for a quiet one for years",
        "it is the only dry one in winter",
    ),
}
EMPTY_REASONS = (
    *("it is like that", "I think so", "that is how I see it", "my friends say so, too", "everybody knows it"),
    *("I just feel that way", "it always was like that", "why not", "it would be good", "I read it somewhere"),
)
EXAMPLES = (
    *("My cousin's school did that, and after a month {}.", "In the village where I lived before, {}."),
    *(
        "We tried it for two weeks last spring, and {}.",
        "I asked nine people in my class, and seven said that {}.",
    ),
)
SEEN = ("it worked just like that", "you could see it in the marks", "nobody wanted to go back", "it was exactly so")
OPENINGS = {
    True: ("I am clearly for it.", "In my opinion we should do it.", "Yes, I think this is a good plan."),
    False: ("I am clearly against it.", "In my opinion we should leave it.", "No, I think this is a bad plan."),
}
CLOSINGS = {
    True: ("For these reasons I would begin with it next term.", "So all in all the gains are larger, and I say yes."),
    False: ("For these reasons I would leave things as they are.", "So all in all the harm is larger, and I say no."),
}
WEIGHED = (
    "Of course one can say that {}, but that weighs less, since {}.",
    "Some will answer that {}. I see that, and still it is the smaller point, because {}.",
)
JOINTS = ("First of all, {}", "Besides, {}", "What is more, {}", "Above all, {}", "Then {}", "I believe {}")
VAGUE = (
    *("It is just better that way.", "You can say a lot about this.", "Everybody knows how it is.", "It is a thing."),
    *("There are many reasons for it and they are all important.", "It would be good because it is good."),
    *("I think so because that is what I think.", "This is a very interesting question for everybody today."),
    *("Things are sometimes like this and sometimes like that.", "It has to do with school and with people and so on."),
)
OFF_TOPIC = (
    *("Yesterday we had fish and I did not like it.", "My brother plays football on Sundays and he scored twice."),
    *(
        "It rained the whole week, so we watched a film about pirates.",
        "By the way, I got new shoes, they are green.",
    ),
    *("Our cat sleeps on the washing machine all day long.", "The bus was late again and the driver had a red hat."),
    *("In the summer we go to the lake with my aunt and her boat.", "My favourite number is eleven, nobody knows why."),
)
RUDE = ("Whoever thinks otherwise is stupid.", "That is all rubbish anyway.", "I don't care, it's boring.")
