"""What users say in the suite `standard`: wordings and fillings that no training ever has.

`UNSEEN`        the same intents as `simulation.conversation.repertoire.USER`, in other words
`unseen_texts`  free sentences

Nothing under `wan_streamer.simulation` or `wan_streamer.training` may use them; `tests/test_standard.py` holds them
against everything that is said there. Colours, digits, things and sums have no other names.
"""

from functools import cache
from itertools import chain

from wan_streamer.evaluation.readers.judges import normalise
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.repertoire import FILLERS, USER, Lines

_USER: dict[str, tuple[str, ...]] = {
    "greeting": ("Hello again.", "Good evening.", "Hi, good to see you."),
    "bye": ("Talk to you soon, bye.", "That's all, goodbye."),
    "how": ("How is your day so far?", "Are you doing well?", "How do you feel today?"),
    "fine": ("I feel really good.", "Everything is great here.", "Pretty good, thanks for asking."),
    "tired": ("I feel rather ill.", "I hardly slept last night.", "Today was hard for me."),
    "weather": ("Is it nice outside?", "Will it rain today?"),
    "music": ("Which kind of songs do you like?", "Are you fond of music?"),
    "joke": ("Could you say something funny?", "I need a good joke."),
    "laugh": ("Oh, I like that joke.", "You made me laugh."),
    "name": ("How should I call you?", "May I ask your name?", "Do you have a name?"),
    "can": ("How can you help me?", "Which things can you do?"),
    "robot": ("Am I talking to a machine?", "Is there a real person speaking?"),
    "hear": ("Is my voice loud enough?", "Does my microphone work?"),
    "see": ("Does my camera work?", "Am I in the picture?"),
    "thanks": ("That was kind, thank you.", "Many thanks for that."),
    "three": ("Let me hear you count to three.", "Now count up to three."),
    "five": ("Let me hear you count to five.", "Now count up to five."),
    "ten": ("Let me hear you count to ten.", "Now count up to ten."),
    "back": ("Start at five and count down.", "Now count down, from five."),
    "sum": ("Add {a} and {b}, please.", "What do you get for {a} plus {b}?"),
    "stop": ("Hey, stop talking.", "Be quiet now, please.", "Okay, stop right there."),
    "no_three": ("No, just up to three.", "I only meant to three."),
    "no_five": ("No, just up to five.", "I only meant to five."),
    "wait_name": ("One moment, what's your name?", "Oh wait, who are you again?"),
    "wait_hear": ("One moment, do you hear me?", "Oh wait, can you even hear me?"),
    "colour": ("Can you name this colour?", "So which colour has it got?"),
    "thing": ("Do you know what I'm holding?", "Please tell me what this is."),
    "digit": ("Please read this number to me.", "And which number is it?"),
    "look_here": ("Have a look, what's this?", "What have I got here?"),
    "i_am": ("People call me {name}.", "By the way, my name's {name}."),
    "ask_my_name": ("Can you still tell me my name?", "How did I say I am called?"),
    "my_colour": ("The colour that I like most is {colour}.", "Of all colours I prefer {colour}."),
    "ask_my_colour": ("Can you still tell me my favourite colour?", "Which colour did I say I like?"),
    "my_pet": ("At home I keep a {pet}.", "We got a {pet} last year."),
    "my_town": ("I moved to {town}.", "My house is in {town}."),
    "my_food": ("For me the best food is {food}.", "I could eat {food} all day."),
    "my_hobby": ("On weekends I do a lot of {hobby}.", "My great passion is {hobby}."),
    "my_number": ("My number of luck has always been {number}.", "I always bet on the number {number}."),
    "my_job": ("I earn my money as a {job}.", "These days I work as a {job}."),
    "ask_my_pet": ("Which pet did I say I have?", "Can you still tell me my pet?"),
    "ask_my_town": ("Which town did I say I live in?", "Can you still tell me my town?"),
    "ask_my_food": ("Which food did I say I like?", "Can you still tell me my favourite food?"),
    "ask_my_hobby": ("Which hobby did I say I have?", "Can you still tell me my hobby?"),
    "ask_my_number": ("Which number did I say is lucky?", "Can you still tell me my lucky number?"),
    "ask_my_job": ("Which job did I say I have?", "Can you still tell me my job?"),
    "others": ("A friend of mine has a {pet}.", "My cousin moved to {town}.", "My uncle works as a {job}."),
    "france": ("Which city is the capital of France?", "Name the capital of France."),
    "week": ("Please tell me how many days a week has.", "A week has how many days?"),
    "ice": ("What is ice made of?", "Please explain to me what ice is."),
    "sun": ("Tell me what the sun is.", "Is the sun a star or a planet?"),
    "legs": ("Please tell me how many legs a spider has.", "A spider has how many legs?"),
    "opposite": ("Which word is the opposite of hot?", "If it is not hot, what is it?"),
    "dont_know": ("Which team won yesterday?", "When is my mother's birthday?"),
    "rain": ("Where does the rain come from?", "Please explain rain to me."),
    "bread": ("Please tell me how one makes bread.", "How is bread baked at home?"),
    "moon": ("Please tell me something about the moon.", "I want to know more about the moon."),
    "story": ("I would love to hear a story.", "Let me hear a little story."),
    "tea": ("Please teach me to make tea.", "What is the right way to make tea?"),
    "say": ("Now say this: {phrase}", "Can you say after me: {phrase}"),
    "ready": ("So, are you ready now?", "Shall we begin, are you ready?"),
    "tea_please": ("Which do you take, tea or coffee?",),
    "red_one": ("Which is better, red or blue?",),
    "cat_one": ("Which do you prefer, a cat or a dog?",),
    "summer": ("Which is nicer, summer or winter?",),
    "morning": ("When is it better, in the morning or at night?",),
    "backchannel": ("Mm, yes.", "Got it.", "Ah, okay.", "Good that you say so.", "Of course.", "Oh, nice."),
    "aside": ("The keys are over there.", "Wait for me in the car.", "Did you feed the cat?"),
    "pause_a": ("I want you to", "Would you now please", "So, can you"),
    "pause_three": ("count for me to three?", "count slowly up to three?"),
    "pause_five": ("count for me to five?", "count slowly up to five?"),
    "long_story": ("I was in the mountains last winter. There was a lot of snow. We stayed in a small wooden house.",
                   "My son has learned to swim. It took him only two weeks. Now he wants to go every day.",
                   "Last night our lights went out. We looked for candles for an hour. In the end we went to bed."),
    "yes_here": ("Sure, I am right here.", "Yes, I was only reading."),
}  # fmt: skip

_FILLERS: dict[str, tuple[str, ...]] = FILLERS | {
    "name": ("Peter", "Laura", "Simon", "Maria", "Robert", "Alice"),
    "pet": ("lizard", "pony", "kitten", "snake", "pig"),
    "town": ("Rome", "Vienna", "Dallas", "Lisbon", "Houston"),
    "food": ("noodles", "ice cream", "strawberries", "potatoes", "chicken"),
    "hobby": ("tennis", "reading", "singing", "sailing", "hiking"),
    "job": ("doctor", "baker", "pilot", "waiter", "plumber"),
    "order": ("milkshake", "lemonade", "burger", "cake", "muffin"),
}  # fmt: skip

UNSEEN = Lines(_USER, _FILLERS)


@cache
def unseen_texts() -> tuple[str, ...]:
    """Free sentences of the test split, without those that are said in training too, but for how they are written."""
    others = chain(*USER.values(), free_texts("train"), free_texts("valid"))
    known = {tuple(normalise(text)) for text in others}
    return tuple(text for text in free_texts("test") if tuple(normalise(text)) not in known)
