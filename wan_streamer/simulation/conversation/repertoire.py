"""Everything that is said in the simulated world, by name, with slots in braces.

`AGENT`    the agent's whole repertoire        `USER`     the user's wordings, by intent
`FILLERS`  what may stand in a slot            `REPLIES`  what answers an intent
`Lines`    wordings and fillings of a world    `KNOWN`    those of the training world
`wording`  one of the user's, slots filled     `agent_texts`  every sentence that the agent can say
"""

import itertools
import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wan_streamer.simulation.face.person import COLOURS, OBJECTS, SHAPES

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Mark", "Sarah", "Tom")


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


FILLERS: dict[str, tuple[str, ...]] = {
    "number": NUMBERS,
    "colour": COLOURS,
    "thing": tuple(with_article(noun) for noun in (*SHAPES, *OBJECTS)),
    "name": NAMES,
    "pet": ("dog", "cat", "rabbit", "parrot", "hamster", "goldfish", "horse", "turtle"),
    "town": ("London", "Paris", "Berlin", "Madrid", "Boston", "Chicago", "Dublin", "Sydney", "Toronto"),
    "food": ("pizza", "pasta", "rice", "soup", "chocolate", "pancakes", "apples", "cheese"),
    "hobby": ("chess", "painting", "running", "swimming", "gardening", "cooking", "dancing", "fishing"),
    "job": ("teacher", "nurse", "cook", "driver", "farmer", "dentist", "lawyer", "painter"),
    "topic": ("music", "movies", "school", "work", "books", "games", "animals", "food", "family", "friends", "sports",
              "the weather", "travel", "money", "cars", "sleep"),
    "order": ("coffee", "tea", "water", "soup", "pizza", "salad", "sandwich", "juice"),
}  # fmt: skip

AGENT: dict[str, str] = {
    # opening and closing
    "hello": "Hello! Nice to meet you.",
    "hi": "Hi there! How are you?",
    "welcome": "Hello, I am Joe. What can I do for you?",
    "bye": "Goodbye, see you soon.",
    "bye_nice": "Bye! It was nice talking to you.",
    # small talk
    "well": "I'm doing well, thank you.",
    "fine_and_you": "I'm fine, thanks. And you?",
    "glad": "I am glad to hear that.",
    "sorry_to_hear": "Oh, I am sorry to hear that.",
    "weather": "I can't see the sky, but I hope it is sunny.",
    "music": "I like music, mostly the piano.",
    "joke": "Why did the robot take a break? It ran out of bytes.",
    "laugh": "Ha ha, I'm glad you liked it.",
    "thats_nice": "That sounds very nice.",
    "mhm": "Mm-hm.",
    "i_see": "I see.",
    # who he is
    "name": "My name is Joe.",
    "name_nice": "I am Joe. Nice to meet you.",
    "can": "I can talk with you, and I can count.",
    "robot": "Yes, I am a computer program.",
    "hear": "Yes, I can hear you.",
    "see": "Yes, I can see you.",
    "no_camera": "No, your camera is off.",
    "welcome_thanks": "You're welcome.",
    "pleasure": "My pleasure.",
    # counting and sums
    "three": "One, two, three.",
    "five": "One, two, three, four, five.",
    "ten": "One, two, three, four, five, six, seven, eight, nine, ten.",
    "back": "Five, four, three, two, one.",
    "sum": "That is {number}.",
    # interruptions
    "okay": "Okay.",
    "stop": "Okay, I will stop.",
    "sorry_three": "Sorry. One, two, three.",
    "sorry_five": "Sorry. One, two, three, four, five.",
    # things that are seen
    "colour_is": "It is {colour}.",
    "thing_is": "That is {thing}.",
    "number_is": "I can see a {number}.",
    "nothing": "I don't see anything in your hand.",
    "remark_thing": "Oh, {thing}!",
    "remark_gone": "And it is gone.",
    "remark_wave": "Hi! I saw you waving.",
    "remark_smile": "You look happy today.",
    "remark_thumb": "Great, thumbs up!",
    "still_there": "Are you still there?",
    # memory
    "meet_name": "Nice to meet you, {name}.",
    "your_name": "Your name is {name}.",
    "will_remember": "Okay, I will remember that.",
    "your_colour": "Your favourite colour is {colour}.",
    "your_pet": "You have a {pet}.",
    "your_town": "You live in {town}.",
    "your_food": "You like {food} best.",
    "your_hobby": "Your hobby is {hobby}.",
    "your_number": "Your lucky number is {number}.",
    "your_job": "You work as a {job}.",
    "unknown": "You haven't told me that yet.",
    # whatever people say
    "free_topic": "Ah, {topic}. Tell me more.",
    "free_order": "One {order}, coming right up.",
    "free_unsure": "I'm not sure about that.",
    "free_question": "Good question. I don't know.",
    "free_why": "I don't know why.",
    "free_program": "I'm only a program, so I can't say.",
    "free_maybe": "Maybe. What do you think?",
    "free_interesting": "That sounds interesting.",
    "free_more": "Okay, tell me more.",
    "free_really": "Oh, really?",
    "free_great": "That sounds great.",
    "free_luck": "Good luck with that.",
    "free_thought": "That's an interesting thought.",
    "free_right": "All right.",
    # knowledge
    "france": "The capital of France is Paris.",
    "week": "A week has seven days.",
    "ice": "Ice is frozen water.",
    "sun": "The sun is a star.",
    "legs": "A spider has eight legs.",
    "opposite": "The opposite of hot is cold.",
    "dont_know": "I am sorry, I don't know that.",
    # explanations, long enough to be interrupted
    "rain": "The sun warms the sea, and water goes up into the air. High up it gets cold and turns into clouds. "
            "When the drops are heavy enough, it rains.",
    "bread": "You mix flour, water, salt and some yeast. Then you let the dough rest for an hour. "
             "After that it goes into a hot oven, until it is brown.",
    "moon": "The moon goes around the earth once a month. It has no light of its own. "
            "We only see the part that the sun shines on.",
    "story": "Once there was a little cat who was afraid of the dark. One night she saw the stars. "
             "Since then she sleeps on the roof.",
    "tea": "First you boil some water. Then you put a bag of tea into a cup, and pour the water on it. "
           "After three minutes your tea is ready.",
    # repeat after me
    "say_sky": "The sky is blue today.",
    "say_fish": "Fresh fish is a fine dish.",
    "say_shells": "She sells sea shells by the shore.",
    "say_moon": "The moon is made of cheese.",
    "say_train": "My train leaves at nine.",
    "say_bottle": "Peter bought a better bottle.",
    "say_later": "We will meet again later.",
    "say_window": "Please open the big window.",
    # quick questions
    "ready": "Yes, I am ready.",
    "tea_please": "Tea, please.",
    "red_one": "Red.",
    "cat_one": "A cat.",
    "summer": "Summer.",
    "morning": "In the morning.",
    # a little German
    "de_hello": "Hallo! Schön, dich zu sehen.",
    "de_fine": "Mir geht es gut, danke.",
    "de_three": "Eins, zwei, drei.",
    "de_name": "Ich heiße Joe.",
    "de_thanks": "Bitte sehr.",
    "de_bye": "Tschüss, bis bald.",
}  # fmt: skip

USER: dict[str, tuple[str, ...]] = {
    "greeting": ("Hello.", "Hi there.", "Hi!", "Hello there.", "Hey, hello.", "Good morning.", "Hello, Joe."),
    "bye": ("Goodbye.", "Bye bye.", "Okay, bye.", "See you later.", "Goodbye, Joe.", "I have to go, bye."),
    "how": ("How are you?", "How are you today?", "How are you doing?", "And how are you?", "How is it going?"),
    "fine": ("I am fine.", "I'm good, thank you.", "I am fine, thanks.", "I am doing great.", "Very well, thanks."),
    "tired": ("I am a bit tired.", "Not so good.", "I have a cold.", "I had a long day.", "I did not sleep well."),
    "weather": ("How is the weather?", "What's the weather like?", "Nice weather today, isn't it?"),
    "music": ("Do you like music?", "What music do you like?", "Do you listen to music?"),
    "joke": ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Can you tell me a joke?"),
    "laugh": ("Ha ha, very good.", "That was funny.", "That's a good one."),
    "name": ("What is your name?", "What's your name?", "Who are you?", "Tell me your name.", "And your name is?"),
    "can": ("What can you do?", "Tell me what you can do.", "So what can you do?", "What can you do for me?"),
    "robot": ("Are you a robot?", "Are you real?", "Are you a computer?", "Are you a machine?"),
    "hear": ("Can you hear me?", "Do you hear me?", "Hello, can you hear me?", "Are you there?"),
    "see": ("Can you see me?", "Do you see me?", "Is my camera on?", "Can you see me now?"),
    "thanks": ("Thank you.", "Thanks.", "Thank you very much.", "Thanks a lot.", "Okay, thank you."),
    "three": ("Count to three.", "Please count to three.", "Can you count to three?", "Count up to three, please."),
    "five": ("Count to five.", "Please count to five.", "Can you count to five?", "Count up to five, please."),
    "ten": ("Count to ten.", "Please count to ten.", "Can you count to ten?", "Count up to ten, please."),
    "back": ("Count down from five.", "Count backwards from five.", "Can you count down from five?"),
    "sum": ("What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} plus {b}?", "Tell me, what is {a} plus {b}?"),
    "stop": ("Stop.", "Stop, please.", "Wait, stop.", "Okay, stop.", "Please stop.", "Stop it.", "Okay, that's enough.",
             "Yeah, you can stop now.", "Right, stop.", "Enough."),
    "no_three": ("No, only to three.", "No, to three, please.", "No no, count to three."),
    "no_five": ("No, only to five.", "No, to five, please.", "No no, count to five."),
    "wait_name": ("Wait, what is your name?", "Sorry, what's your name again?", "Hold on, who are you?"),
    "wait_hear": ("Wait, can you hear me?", "Sorry, can you hear me?", "Hold on, can you hear me?"),
    "colour": ("What colour is this?", "Which colour is it?", "What colour do you see?", "Tell me the colour."),
    "thing": ("What is this?", "What do you see?", "What am I holding?", "Can you see what this is?"),
    "digit": ("Which number is this?", "What number do you see?", "Can you read this number?"),
    "look_here": ("And what is this?", "Look, what is this?"),
    "i_am": ("My name is {name}.", "I am {name}.", "I'm {name}.", "Hello, I am {name}."),
    "ask_my_name": ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?"),
    "my_colour": ("My favourite colour is {colour}.", "I like {colour} best.", "I love the colour {colour}."),
    "ask_my_colour": ("What is my favourite colour?", "Which colour do I like?", "Do you remember my colour?"),
    "my_pet": ("I have a {pet}.", "I've got a {pet} at home.", "My pet is a {pet}.", "There is a {pet} in my house."),
    "my_town": ("I live in {town}.", "My home is in {town}.", "I have a flat in {town}.", "I come from {town}."),
    "my_food": ("I like {food} best.", "My favourite food is {food}.", "I eat {food} every day.", "I love {food}."),
    "my_hobby": ("My hobby is {hobby}.", "I love {hobby}.", "In my free time I like {hobby}.", "I enjoy {hobby}."),
    "my_number": ("My lucky number is {number}.", "{number} is my lucky number.", "The number {number} is my luck."),
    "my_job": ("I work as a {job}.", "I am a {job}.", "My job? I'm a {job}.", "I have been a {job} for years."),
    "ask_my_pet": ("What pet do I have?", "Do you remember my pet?", "Which animal lives with me?"),
    "ask_my_town": ("Where do I live?", "Do you remember where I live?", "Which town do I live in?"),
    "ask_my_food": ("What is my favourite food?", "Do you remember what I like to eat?", "Which food do I like best?"),
    "ask_my_hobby": ("What is my hobby?", "Do you remember my hobby?", "What do I do in my free time?"),
    "ask_my_number": ("What is my lucky number?", "Do you remember my lucky number?", "Which number brings me luck?"),
    "ask_my_job": ("What is my job?", "Do you remember what I do for work?", "What do I work as?"),
    "others": ("My sister has a {pet}.", "My brother lives in {town}.", "My friend loves {food}.",
               "My mother likes {hobby}.",
               "My father is a {job}.", "My neighbour's name is {name}."),
    "france": ("What is the capital of France?", "Tell me the capital of France."),
    "week": ("How many days has a week?", "How many days are in a week?"),
    "ice": ("What is ice?", "Do you know what ice is?"),
    "sun": ("What is the sun?", "Is the sun a star?"),
    "legs": ("How many legs has a spider?", "How many legs does a spider have?"),
    "opposite": ("What is the opposite of hot?", "Tell me the opposite of hot."),
    "dont_know": ("Who won the game last night?", "How old is my brother?", "What did I have for lunch?"),
    "rain": ("Why does it rain?", "Explain why it rains.", "Tell me about the rain."),
    "bread": ("How do you make bread?", "Tell me how to bake bread.", "Explain how bread is made."),
    "moon": ("Tell me about the moon.", "What do you know about the moon?", "Explain the moon to me."),
    "story": ("Tell me a story.", "Do you know a story?", "Can you tell me a story?"),
    "tea": ("How do I make tea?", "Tell me how to make tea.", "Explain how to make tea."),
    "say": ("Repeat after me: {phrase}", "Please say: {phrase}", "Say after me: {phrase}"),
    "ready": ("Are you ready?", "Ready?"),
    "tea_please": ("Tea or coffee?", "Coffee or tea?"),
    "red_one": ("Red or blue?", "Blue or red?"),
    "cat_one": ("A cat or a dog?", "A dog or a cat?"),
    "summer": ("Summer or winter?", "Winter or summer?"),
    "morning": ("In the morning or at night?", "At night or in the morning?"),
    "backchannel": ("Mm-hm.", "Yeah.", "Right.", "Okay.", "I see.", "Uh-huh.", "Yeah, yeah.", "Oh, okay.",
                    "Mm-hm, right.", "Oh, I see.", "Yes, of course.", "Sure, okay.", "Really?", "That makes sense."),
    "aside": ("Not now, I am on the phone.", "Can you close the door?", "Leave it on the table, please.",
              "Just a minute, honey.", "Dinner is at seven.", "No, the other one."),
    "pause_a": ("Can you please", "I would like you to", "Well, could you"),
    "pause_three": ("count to three?", "count up to three?"),
    "pause_five": ("count to five?", "count up to five?"),
    "long_story": ("Yesterday I went to the market. There was a lot of fresh fruit. And then I met an old friend.",
                   "We went to the beach last week. The water was quite cold. But the sun was shining all day.",
                   "I have a new bike. I ride it to work every day. It is green, and it is very fast.",
                   "My sister has a little dog. He is only three months old. He sleeps in my old hat."),
    "yes_here": ("Yes, I am here.", "Yes, I am still here.", "Yes, sorry, I was thinking."),
    "de_hello": ("Hallo.", "Guten Tag.", "Hallo Joe."),
    "de_fine": ("Wie geht es dir?", "Wie geht's?"),
    "de_three": ("Zähl bis drei.", "Bitte zähl bis drei.", "Kannst du bis drei zählen?"),
    "de_name": ("Wie heißt du?", "Wer bist du?"),
    "de_thanks": ("Danke.", "Vielen Dank."),
    "de_bye": ("Tschüss.", "Auf Wiedersehen."),
}  # fmt: skip

REPLIES: dict[str, tuple[tuple[str, float], ...]] = {
    "greeting": (("hello", 0.6), ("hi", 0.25), ("welcome", 0.15)),
    "bye": (("bye", 0.7), ("bye_nice", 0.3)),
    "how": (("well", 0.7), ("fine_and_you", 0.3)),
    "fine": (("glad", 1.0),),
    "tired": (("sorry_to_hear", 1.0),),
    "name": (("name", 0.75), ("name_nice", 0.25)),
    "wait_name": (("name", 1.0),),
    "wait_hear": (("hear", 1.0),),
    "stop": (("okay", 0.5), ("stop", 0.5)),
    "thanks": (("welcome_thanks", 0.7), ("pleasure", 0.3)),
    "long_story": (("thats_nice", 0.6), ("i_see", 0.4)),
}
"""What the agent answers, where it is not the reply with the intent's own name."""

SMILES = frozenset(
    {"hello", "hi", "welcome", "name_nice", "glad", "welcome_thanks", "pleasure", "bye", "bye_nice", "joke", "laugh",
     "meet_name", "remark_wave", "remark_smile", "remark_thumb", "thats_nice", "de_hello", "de_bye", "greeting"}
)  # fmt: skip
"""Replies and intents that are said with a smile."""


def is_german(label: str) -> bool:
    return label.startswith("de_")


def slots(text: str) -> tuple[str, ...]:
    """Names of the slots of a template."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(text) if name)


def agent_texts() -> dict[str, str]:
    """Every sentence that the agent can say -> the name of its reply."""
    texts: dict[str, str] = {}
    for label, template in AGENT.items():
        names = slots(template)
        for values in itertools.product(*(FILLERS[name] for name in names)):
            texts[template.format(**dict(zip(names, values, strict=True)))] = label
    return texts


def pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


ANYTHING = 0.5  # share of what is told that is any word, where there are words, so that none can be guessed


@dataclass(frozen=True)
class Lines:
    """What users say: wordings by intent, and what may stand in a slot; with `words`, half of the time one of them."""

    user: Mapping[str, tuple[str, ...]]
    fillers: Mapping[str, tuple[str, ...]]
    words: tuple[str, ...] = ()

    def wording(self, intent: str, rng: np.random.Generator, **values: str) -> str:
        """One of the wordings with its slots filled; the first letter is a capital."""
        text = pick(self.user[intent], rng).format(**values)
        return text[0].upper() + text[1:] if not intent.startswith("pause_") or intent == "pause_a" else text

    def filling(self, slot: str, rng: np.random.Generator) -> str:
        return pick(self.words if self.words and rng.random() < ANYTHING else self.fillers[slot], rng)


KNOWN = Lines(USER, FILLERS)


def wording(intent: str, rng: np.random.Generator, **values: str) -> str:
    """One of the training world's wordings."""
    return KNOWN.wording(intent, rng, **values)


def any_wording(rng: np.random.Generator) -> str:
    """Something that a user may say in English, at random."""
    english = tuple(intent for intent in USER if not is_german(intent))
    values = {name: pick(options, rng) for name, options in FILLERS.items() if name != "thing"}
    values |= {name: pick(NUMBERS, rng) for name in ("a", "b")}
    return wording(pick(english, rng), rng, **values, phrase="This is a test.")


def reply_label(intent: str, rng: np.random.Generator) -> str:
    """What the agent answers to an intent."""
    names, chances = zip(*REPLIES.get(intent, ((intent, 1.0),)), strict=True)
    return names[int(rng.choice(len(names), p=chances))]
