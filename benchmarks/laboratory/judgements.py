"""A small set of texts with judgements, written for this project: does a ranking survive narrower types?

Pairs of sentences are graded as in the STS benchmark, from 0 (about something else) to 5 (the same meaning). Each query
has a passage that answers it (2) and one on its subject that does not (1); all others are irrelevant, though some come
close. The grades were given by hand, once: they compare types, not models.
"""

import numpy as np

PAIRS = (
    (5.0, "A man is playing a guitar.", "A man plays the guitar."),
    (5.0, "The meeting was postponed until Friday.", "They put the meeting off until Friday."),
    (5.0, "She bought a new car last week.", "Last week she purchased a new car."),
    (4.8, "The child is afraid of dogs.", "Dogs frighten the child."),
    (4.8, "Water freezes at zero degrees Celsius.", "At 0 °C water turns to ice."),
    (4.6, "The company fired two hundred workers.", "Two hundred employees lost their jobs at the firm."),
    (4.6, "He quickly finished his homework.", "He got his homework done in no time."),
    (4.4, "Heavy rain flooded the streets of the town.", "The town's roads were under water after a downpour."),
    (4.2, "The vaccine prevents most severe cases.", "Few vaccinated people fall seriously ill."),
    (4.0, "A woman is slicing an onion in the kitchen.", "A woman is cutting vegetables."),
    (4.0, "The train to Berlin leaves at nine.", "The Berlin train departs in the morning."),
    (3.8, "Two boys are playing football in the park.", "Some children are playing a game outside."),
    (3.8, "The museum is closed on Mondays.", "You can visit the museum from Tuesday to Sunday."),
    (3.6, "The bank raised its interest rate by half a percent.", "The central bank made borrowing more expensive."),
    (3.4, "The dog chased the cat up a tree.", "A cat fled from a dog."),
    (3.2, "He forgot to save the file before the computer crashed.", "A crash cost him some of his work."),
    (3.0, "A man is riding a horse on the beach.", "A woman is riding a horse through a field."),
    (3.0, "The recipe needs three eggs and a cup of flour.", "Mix flour with two eggs and some milk."),
    (2.8, "The airline cancelled all flights because of the strike.", "Flights were delayed because of fog."),
    (2.8, "The team won the final by two goals.", "The team lost the final in extra time."),
    (2.6, "The surgeon operated on his knee.", "He hurt his knee while skiing."),
    (2.6, "The new phone has a better camera.", "The phone's battery does not last long."),
    (2.4, "The orchestra played a symphony by Brahms.", "A pianist gave a recital of Chopin's music."),
    (2.2, "The river is too polluted for swimming.", "The lake is popular with swimmers in summer."),
    (2.0, "A cat is sleeping on the sofa.", "A dog is lying on the carpet."),
    (2.0, "Parliament passed the new tax law.", "The president gave a speech on taxes."),
    (1.8, "Students protested against higher fees.", "The university opened a new library."),
    (1.8, "The volcano erupted for the first time in a century.", "An earthquake shook the coast at night."),
    (1.6, "Coffee prices rose after the frost in Brazil.", "She drinks two cups of coffee every morning."),
    (1.6, "The bridge was built in 1890.", "Cars may not cross the old bridge."),
    (1.4, "The actor won a prize for his role.", "The film opens in cinemas next week."),
    (1.4, "The farmer is ploughing his field.", "The tractor needs a new tyre."),
    (1.2, "Bees collect nectar from flowers.", "Honey is sold at the market."),
    (1.2, "The police arrested a man for theft.", "The judge was late for the hearing."),
    (1.0, "The telescope discovered a new planet.", "Stars cannot be seen from the city."),
    (1.0, "My printer is out of ink.", "The office ordered new desks."),
    (0.8, "The bakery sells bread from six in the morning.", "The hotel serves breakfast until ten."),
    (0.6, "A boy is flying a kite.", "The plane landed safely in the storm."),
    (0.6, "The bank of the river is steep.", "The bank opened a branch in the village."),
    (0.4, "He plays chess against his computer.", "The queen visited the hospital."),
    (0.4, "The stock market fell by three percent.", "She fell off her bicycle."),
    (0.2, "A man is playing a guitar.", "The stock market fell today."),
    (0.2, "Whales sing to each other over long distances.", "The carpenter repaired the door."),
    (0.0, "The soup needs more salt.", "The satellite orbits the earth twice a day."),
    (0.0, "Our neighbours are moving to Spain.", "Iron is magnetic."),
    (0.0, "The function returns an empty list.", "The grapes were picked in September."),
    (0.0, "She wrote her thesis on medieval trade.", "The lift is out of order."),
    (0.0, "Mosquitoes can carry malaria.", "The password must have eight characters."),
)

#: (query, the passage that answers it, a passage on its subject that does not).
TOPICS = (
    (
        "how long should I boil an egg",
        "For a soft yolk an egg needs six minutes in boiling water, for a hard one about ten.",
        "Eggs are graded by size and by how the hens were kept.",
    ),
    (
        "why is the sky blue",
        "Air scatters short waves of sunlight more than long ones, so that blue reaches us from all directions.",
        "At sunset the sky often turns red and orange.",
    ),
    (
        "what does a cat do when it is ill",
        "A sick cat hides, stops eating and no longer grooms itself.",
        "Cats sleep for up to sixteen hours a day.",
    ),
    (
        "is chocolate bad for dogs",
        "Cocoa contains theobromine, which dogs break down so slowly that even a small bar can poison them.",
        "Dogs need a walk at least twice a day.",
    ),
    (
        "how do I reset a forgotten password",
        "Choose 'Forgot password' on the sign-in page; a link to set a new one is sent to your address.",
        "A good password is long and is not used for anything else.",
    ),
    (
        "when was the Eiffel Tower built",
        "Gustave Eiffel's company raised the tower in Paris between 1887 and 1889 for the World's Fair.",
        "Paris has more than a hundred museums.",
    ),
    (
        "symptoms of a vitamin D deficiency",
        "Too little vitamin D makes people tired, weakens bones and muscles, and can cause pain in the back.",
        "Vitamin C is found in citrus fruit, peppers and cabbage.",
    ),
    (
        "who invented the telephone",
        "Alexander Graham Bell received the first patent for a telephone in 1876.",
        "Most people now carry a mobile phone.",
    ),
    (
        "what makes bread rise",
        "Yeast ferments sugar in the dough; the gas that it gives off is caught by the gluten.",
        "Rye bread keeps fresh for longer than white bread.",
    ),
    (
        "how far away is the moon",
        "Our satellite orbits at a mean distance of about 384,000 kilometres.",
        "The moon has no atmosphere and no liquid water.",
    ),
    (
        "difference between a list and a tuple in Python",
        "A tuple cannot be changed once it is made, while elements can be added to a list or replaced.",
        "Python is often used to teach programming.",
    ),
    (
        "best time of year to plant tulips",
        "Tulip bulbs go into the ground in autumn, before the first hard frost.",
        "Tulips came to the Netherlands from Turkey in the sixteenth century.",
    ),
    (
        "can I take a power bank on a plane",
        "Portable batteries of up to 100 watt-hours are allowed in the cabin, but not in checked luggage.",
        "Passengers should be at the gate forty minutes before departure.",
    ),
    (
        "why do leaves change colour in autumn",
        "Trees take the green chlorophyll back before winter, and yellow and red pigments become visible.",
        "Rake up dead leaves, or leave them in a corner for hedgehogs.",
    ),
    (
        "how to get red wine out of a carpet",
        "Blot the stain at once, then cover it with salt and wash it with water and vinegar.",
        "Red wine should be served at sixteen to eighteen degrees.",
    ),
    (
        "what is inflation",
        "When prices rise in general and money buys less, economists speak of inflation.",
        "Central banks meet several times a year.",
    ),
    (
        "how does a heat pump work",
        "It evaporates a refrigerant with heat from outside, compresses the vapour, and gives the heat to the house.",
        "Insulating the roof lowers the cost of heating.",
    ),
    (
        "longest river in South America",
        "The Amazon flows for some 6,400 kilometres from the Andes to the Atlantic.",
        "The Andes are the longest range of mountains on land.",
    ),
    (
        "how do bees make honey",
        "Workers carry nectar to the hive, add enzymes, and fan it with their wings until it is thick.",
        "A queen lays up to two thousand eggs a day.",
    ),
    (
        "what should I do after a minor car accident",
        "Secure the scene, help the injured, exchange names and insurance details, and take photographs.",
        "Cars must be inspected every two years.",
    ),
)

QUERIES = tuple(query for query, *_ in TOPICS)

PASSAGES = tuple(passage for _, *passages in TOPICS for passage in passages)


def correlation(x, y):
    """Spearman's correlation: that of the ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(x):
    _, place, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def gain(scores, count=10):
    """nDCG at `count`: the mean over queries of the discounted gain of the first passages, over the largest possible.

    Parameters
    ----------
    scores : ndarray, shape (queries, passages)
        In the order of `QUERIES` and `PASSAGES`.
    """
    discounts = 1 / np.log2(np.arange(2, count + 2))
    best = 2 * discounts[0] + discounts[1]
    gains = []
    for query, row in enumerate(scores):
        grades = np.zeros(len(PASSAGES))
        grades[[2 * query, 2 * query + 1]] = 2, 1
        gains.append(grades[np.argsort(-row, kind="stable")[:count]] @ discounts / best)
    return float(np.mean(gains))
