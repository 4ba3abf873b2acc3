"""Frames in which people put a question, a wish or a fact, and what stands in them.

`framed`   every part in every frame
`FRAMED`   intent -> wordings

What a sentence is about can only be told from a few of its words if the others are met with every intent. So a
language model learns which words count, and not sentences by heart.
"""

from itertools import product

ASKED = ("Tell me {}.", "Do you know {}?", "Can you tell me {}?", "Could you tell me {}?", "I want to know {}.",
         "I would like to know {}.", "Let me ask you {}.", "Do you have any idea {}?", "I wonder {}.",
         "Please tell me {}.", "I'd like to know {}.", "Would you tell me {}?", "Do you happen to know {}?",
         "Any idea {}?", "I need to know {}.", "I have to ask you {}.", "Could you please tell me {}?",
         "Just tell me {}.", "So tell me {}.", "And can you tell me {}?", "Let me know {}.", "Hey, do you know {}?",
         "I'd be happy to know {}.", "Maybe you know {}.", "I was going to ask {}.", "Can you say {}?",
         "I'm curious {}.", "Well, do you know {}?", "You can tell me {}, right?", "I forgot {}.",
         "What I want to know is {}.", "My question is {}.")  # fmt: skip
WANTED = ("Please {}.", "Can you {}?", "Could you {}?", "I want you to {}.", "I would like you to {}.", "Would you {}?",
          "{}, please.", "So, {}.", "Will you {}?", "Go on, {}.", "Would you please {}?", "Could you please {}?",
          "Can you please {}?", "I'd like you to {}.", "I need you to {}.", "Now please {}.", "Okay, {}.", "Just {}.",
          "Well, {}.", "Hey, can you {}?", "Why don't you {}?", "Show me that you can {}.", "I'd like to hear you {}.",
          "You could {}.", "Come on, {}.", "Be so kind and {}.", "Do me a favour and {}.", "Let's see if you can {}.",
          "It would be nice if you could {}.", "Try to {}.", "First {}.")  # fmt: skip
GIVEN = ("I want {}.", "I would like {}.", "I'd like to hear {}.", "I want to hear {}.", "I'd love to hear {}.",
         "Can I hear {}?", "May I have {}?", "Can I get {}?", "Give me {}, please.", "How about {}?", "What about {}?",
         "Have you got {}?", "Have you got {} for me?", "I feel like {}.", "I could do with {}.", "It is time for {}.",
         "{} would be nice.", "I am in the mood for {}.", "Do you have {} for me?", "Let's have {}.", "{}, please.",
         "Surprise me with {}.", "I am waiting for {}.", "I would be happy about {}.")  # fmt: skip
TAUGHT = ("Teach me how to {}.", "Show me how to {}.", "Tell me how to {}.", "Explain how to {}.", "How do I {}?",
          "How can I {}?", "How would you {}?", "How do you {}?", "How does one {}?", "How do people {}?",
          "What is the best way to {}?", "What's a good way to {}?", "What do I need to {}?", "I want to learn to {}.",
          "I'd like to learn how to {}.", "I would like to {}, how does that work?", "Do you know how to {}?",
          "I don't know how to {}.", "Can you show me how to {}?", "Could you explain how to {}?", "Help me to {}.",
          "What must I do to {}?", "I have never learned how to {}.", "Can anybody {}?")  # fmt: skip
ABOUT = ("What do you know about {}?", "Tell me about {}.", "Tell me more about {}.", "Tell me a bit about {}.",
         "Talk to me about {}.", "I want to learn about {}.", "I'd like to hear something about {}.",
         "Explain {} to me.", "Can you explain {}?", "Could you explain {} to me?", "What can you tell me about {}?",
         "Let's talk about {}.", "I have a question about {}.", "Do you know anything about {}?",
         "I am curious about {}.", "Give me some facts about {}.", "What should I know about {}?",
         "I know nothing about {}.", "Say a few words about {}.", "What's there to say about {}?")  # fmt: skip
EITHER = ("Do you like {}?", "Would you like {}?", "Do you want {}?", "What do you like more, {}?", "{}, which one?",
          "{}, what do you say?", "What would you choose, {}?", "Which one do you want, {}?", "Tell me, {}?",
          "Which one is it, {}?", "So, {}?", "If you could choose, {}?", "{}, what is your choice?",
          "What will it be, {}?", "I can't decide, {}?", "What do you like best, {}?")  # fmt: skip
TOLD = ("By the way, {}.", "You should know that {}.", "Let me tell you that {}.", "I want you to know that {}.",
        "Remember that {}.", "Just so you know, {}.", "I forgot to say that {}.", "Actually, {}.", "You know, {}.",
        "Well, {}.", "Did I tell you that {}?", "So, {}.", "I have to tell you, {}.", "Please remember, {}.",
        "It is true that {}.", "Oh, and {}.", "I think I said that {}.", "What else? {}.")  # fmt: skip
RECALLED = ("Do you remember {}?", "Can you remember {}?", "Do you still remember {}?", "Have you forgotten {}?",
            "I hope you remember {}.", "Tell me again {}.", "Do you still know {}?", "Let's see if you know {}.",
            "Do you remember at all {}?", "Please tell me {} again.", "You know {}, don't you?",
            "I told you before {}.")  # fmt: skip
BEFORE_STOP = ("", "Okay, ", "Wait, ", "Oh, ", "Please, ", "No, ", "All right, ", "Sorry, ", "Joe, ", "Um, ")
BEFORE_ELSE = ("Wait, ", "Hold on, ", "Sorry, ", "Just a second, ", "Hang on, ", "Excuse me, ", "Stop, ", "Hey, ",
               "But ", "Okay, but ", "Wait a minute, ")  # fmt: skip
BEFORE_LESS = ("No, ", "Sorry, ", "Wait, ", "Oh, ", "Stop, ", "No, sorry, ", "Hey, ", "Well, ")
AFTER = (".", " now.", " please.", " for a moment.")


def framed(frames: tuple[str, ...], *parts: str) -> tuple[str, ...]:
    """Every part in every frame."""
    return tuple(frame.replace("{}", part) for part in parts for frame in frames)


def joined(*choices: tuple[str, ...]) -> tuple[str, ...]:
    """One of each, one behind the other."""
    return tuple(map("".join, product(*choices)))


FRAMED: dict[str, tuple[str, ...]] = {
    "name": framed(ASKED, "what your name is", "who you are", "what people call you", "what you are called"),
    "can": framed(ASKED, "what you can do", "what you are good at", "what you are able to do"),
    "robot": framed(ASKED, "whether you are a robot", "if you are a real person", "if you are a computer"),
    "hear": framed(ASKED, "whether you can hear me", "if you hear me", "if my microphone is on"),
    "see": framed(ASKED, "whether you can see me", "if you see me", "if my camera is on"),
    "how": framed(ASKED, "how you are", "how you are doing", "how you feel", "whether you are well"),
    "weather": framed(ASKED, "how the weather is", "what the weather is like", "if it will rain", "if it is cold"),
    "music": framed(ASKED, "what music you like", "if you like music", "which songs you like"),
    "france": framed(ASKED, "what the capital of France is", "the capital of France", "which town is France's capital"),
    "week": framed(ASKED, "how many days there are in a week", "how many days one week has"),
    "ice": (*framed(ASKED, "what ice really is", "what kind of thing ice is"), *framed(ABOUT, "ice")),
    "sun": (*framed(ASKED, "what the sun really is", "what kind of thing the sun is"), *framed(ABOUT, "the sun")),
    "legs": framed(ASKED, "how many legs a spider has got", "how many legs spiders have", "a spider's number of legs"),
    "opposite": framed(ASKED, "what the opposite of hot is", "the opposite of the word hot", "what is not hot"),
    "dont_know": framed(ASKED, "who won the last game", "what I had for lunch", "how old my brother is",
                        "when my sister comes home", "where my keys are", "what my neighbour is called",
                        "when my train leaves", "what my teacher said", "how much I weigh"),
    "rain": (*framed(ASKED, "why it rains", "how rain is made", "what makes it rain"),
             *framed(ABOUT, "rain", "the rain")),
    "bread": (*framed(ASKED, "how bread is made", "how one bakes bread"),
              *framed(TAUGHT, "make bread", "bake bread", "make a loaf of bread"), *framed(ABOUT, "bread")),
    "moon": (*framed(ASKED, "about the moon", "what the moon is"), *framed(ABOUT, "the moon", "our moon")),
    "tea": (*framed(ASKED, "how tea is made", "how one makes a cup of tea"),
            *framed(TAUGHT, "make tea", "make a cup of tea", "cook some tea")),
    "story": (*framed(WANTED, "tell me a story", "tell a short story", "tell me a nice story", "read me a story"),
              *framed(GIVEN, "a story", "a short story", "one of your stories", "a good story")),
    "joke": (*framed(WANTED, "tell me a joke", "tell a joke", "make a joke", "make me laugh"),
             *framed(GIVEN, "a joke", "a good joke", "something funny")),
    "three": framed(WANTED, "count to three", "count from one to three", "say the numbers up to three"),
    "five": framed(WANTED, "count to five", "count from one to five", "say the numbers up to five"),
    "ten": framed(WANTED, "count to ten", "count from one to ten", "say the numbers up to ten"),
    "back": framed(WANTED, "count down from five", "count backwards from five", "count from five down to one"),
    "sum": framed(ASKED, "what {a} plus {b} is", "what {a} and {b} make", "how much {a} and {b} is",
                  "the sum of {a} and {b}"),
    "colour": framed(ASKED, "what colour this is", "which colour this has", "the colour of this thing",
                     "what colour I am holding", "its colour"),
    "thing": framed(ASKED, "what this thing is", "what I have in my hand", "what I am showing you",
                    "the name of this thing", "what you see here"),
    "digit": framed(ASKED, "which number this is", "what number you see", "the number on this card",
                    "what number is on my card", "what is written here"),
    "ask_my_name": framed(ASKED + RECALLED, "what my name is", "who I am", "my name", "what I am called"),
    "ask_my_colour": framed(ASKED + RECALLED, "what my favourite colour is", "which colour I like best",
                            "my favourite colour"),
    "ask_my_pet": framed(ASKED + RECALLED, "what pet I have", "which animal I have at home", "what my pet is"),
    "ask_my_town": framed(ASKED + RECALLED, "where I live", "which town I live in", "where my home is"),
    "ask_my_food": framed(ASKED + RECALLED, "what my favourite food is", "what I like to eat",
                          "which food I like best"),
    "ask_my_hobby": framed(ASKED + RECALLED, "what my hobby is", "what I do in my free time", "which hobby I have"),
    "ask_my_number": framed(ASKED + RECALLED, "what my lucky number is", "which number brings me luck",
                            "my lucky number"),
    "ask_my_job": framed(ASKED + RECALLED, "what my job is", "what I do for a living", "what I work as"),
    "i_am": framed(TOLD, "my name is {name}", "I am called {name}", "people call me {name}"),
    "my_colour": framed(TOLD, "my favourite colour is {colour}", "I like {colour} best"),
    "my_pet": framed(TOLD, "I have a {pet}", "I keep a {pet} at home", "my pet is a {pet}"),
    "my_town": framed(TOLD, "I live in {town}", "my home is in {town}", "I come from {town}"),
    "my_food": framed(TOLD, "my favourite food is {food}", "I like {food} best", "I love to eat {food}"),
    "my_hobby": framed(TOLD, "my hobby is {hobby}", "I love {hobby}", "in my free time I do {hobby}"),
    "my_number": framed(TOLD, "my lucky number is {number}", "{number} is my lucky number"),
    "my_job": framed(TOLD, "I work as a {job}", "I am a {job}", "my job is that of a {job}"),
    "say": ("Repeat this: {phrase}", "Repeat what I say: {phrase}", "Please repeat: {phrase}",
            "Say it like me: {phrase}", "Say these words: {phrase}", "Would you say this? {phrase}",
            "Try to say this: {phrase}", "Say: {phrase}", "Repeat: {phrase}", "After me: {phrase}",
            "Say the following: {phrase}", "Could you repeat: {phrase}", "Now repeat after me: {phrase}",
            "I say, and you repeat: {phrase}", "Please say: {phrase}"),
    "stop": joined(BEFORE_STOP, ("stop it", "stop speaking", "be quiet", "that's enough", "stop there", "stop here",
                                 "you can stop", "hold on", "let me speak", "don't go on", "stop this"), AFTER),
    "no_three": joined(BEFORE_LESS, ("only to three.", "just count to three.", "to three is enough.",
                                     "I meant to three.", "not further than three.", "only until three.")),
    "no_five": joined(BEFORE_LESS, ("only to five.", "just count to five.", "to five is enough.",
                                    "I meant to five.", "not further than five.", "only until five.")),
    "wait_name": joined(BEFORE_ELSE, ("what's your name?", "who are you?", "what is your name again?",
                                      "who am I talking to?", "what are you called?", "tell me your name first.")),
    "wait_hear": joined(BEFORE_ELSE, ("can you hear me?", "do you hear me?", "do you even hear me?", "are you there?",
                                      "can you hear what I say?", "is my microphone on?")),
    "tea_please": framed(EITHER, "tea or coffee", "coffee or tea"),
    "red_one": framed(EITHER, "red or blue", "blue or red"),
    "cat_one": framed(EITHER, "a cat or a dog", "a dog or a cat"),
    "summer": framed(EITHER, "summer or winter", "winter or summer"),
    "morning": framed(EITHER, "in the morning or at night", "mornings or nights"),
}  # fmt: skip
