"""Sentences without any news, and the frames that skills, titles, levels and places are put in."""

MEMBER_OPENINGS = (
    "{level} {title} in {place}.",
    "{title}, {level}, based in {place}.",
    "Hello, I am a {title} ({level}) living in {place}.",
    "{place}: {level} {title} open to offers.",
)
MEMBER_SKILLS = (
    "My strengths are {a}, {b} and {c}.",
    "I know {a} and {b}, and like {c}.",
    "Day to day I do {a}, {b} and {c}.",
    "Mostly {a}; also {b} and {c}.",
)
RESUME_OPENINGS = (
    "Worked as {title} in {place}, {level}.",
    "{level}, last as {title}, {place}.",
    "Career: {title}, {level}. Home: {place}.",
)
RESUME_SKILLS = (
    "Responsible for {a}, {b} and {c}.",
    "Projects in {a} and {b}; courses in {c}.",
    "Duties: {a}, {b}, {c}.",
)
JOB_OPENINGS = (
    "We hire a {title} in {place}, {level}.",
    "{title} wanted ({level}), {place}.",
    "Vacancy near {place}: {title}, {level}.",
    "Our team in {place} needs a {title}: {level}.",
)
JOB_REMOTE = (
    "You may work from home.",
    "Remote work is possible.",
    "Work from anywhere you like.",
)
JOB_SKILLS = (
    "Your tasks: {a}, {b} and {c}.",
    "You bring {a} and {b}, ideally {c}.",
    "You will take care of {a}, {b} and {c}.",
    "Needed: {a}, {b}, {c}.",
)
MEMBER_FILLERS = (
    "I enjoy learning new things and meeting people.",
    "Always looking forward to the next challenge.",
    "Colleagues call me reliable and curious.",
    "In my free time I read, hike and cook.",
    "Happy to connect and exchange ideas.",
    "I value honesty and a good atmosphere.",
    "Motivated, friendly and ready to grow.",
    "I keep calm when things get busy.",
    "Please send me a message if you like my profile.",
    "I believe that small steps lead far.",
    "Open to a change at the right moment.",
    "My family and two cats keep me grounded.",
    "I care about results and about people.",
    "Lifelong learner with a positive attitude.",
    "References are available on request.",
    "I like to share what I know.",
)
JOB_FILLERS = (
    "We offer fair pay and thirty days of leave.",
    "Join a friendly team with short decision paths.",
    "Flexible hours and free drinks are included.",
    "Apply now and get to know us.",
    "We welcome applications from everyone.",
    "Our people grow with their responsibilities.",
    "You can expect a modern workplace.",
    "We look forward to your application.",
    "A pension plan and a travel ticket come with it.",
    "Start as soon as you can.",
    "We celebrate our successes together.",
    "An open feedback culture matters to us.",
    "Your ideas count from the first day.",
    "Training budget and career paths are ready.",
    "The contract is permanent after a trial.",
    "Regular team events keep us together.",
)
