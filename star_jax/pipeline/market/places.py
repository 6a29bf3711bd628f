"""Where people live and how experienced they are, each in several wordings."""

# Country, then the wordings of a city.
CITIES = (
    ("Germany", ("Berlin", "the German capital", "Brandenburg")),
    ("Germany", ("Munich", "Bavaria", "the Oktoberfest city")),
    ("Germany", ("Hamburg", "the port on the Elbe", "northern Germany")),
    ("United Kingdom", ("London", "the British capital", "the Thames")),
    ("United Kingdom", ("Manchester", "north-west England", "Lancashire")),
    ("United Kingdom", ("Edinburgh", "the Scottish capital", "Scotland")),
    ("United States", ("New York", "Manhattan", "Brooklyn")),
    ("United States", ("Chicago", "Illinois", "Lake Michigan")),
    ("United States", ("San Francisco", "the Bay Area", "northern California")),
    ("India", ("Mumbai", "Maharashtra", "Bombay")),
    ("India", ("Bangalore", "Bengaluru", "Karnataka")),
    ("India", ("New Delhi", "the Indian capital", "Gurgaon")),
)
_COUNTRIES = tuple(dict.fromkeys(country for country, _ in CITIES))
CITY_COUNTRY = tuple(_COUNTRIES.index(country) for country, _ in CITIES)

SENIORITY = ("entry", "junior", "experienced", "senior", "director")
# What a member says of themselves, then what a job asks for.
MEMBER_LEVELS = (
    ("recently graduated", "aspiring", "trainee"),
    ("junior", "early-career", "newly qualified"),
    ("experienced", "mid-career", "seasoned"),
    ("senior", "veteran", "long-standing"),
    ("executive", "chief", "leading"),
)
JOB_LEVELS = (
    ("entry level, graduates welcome", "no experience needed", "internship or first job"),
    ("junior role", "one or two years of practice", "early career position"),
    ("several years of practice", "mid-level role", "experienced professionals"),
    ("senior role", "ten years of expertise", "veterans of the trade"),
    ("executive role", "leading the department", "director level"),
)
RESUME_LEVELS = (
    ("just graduated", "a few internships", "no job so far"),
    ("one year of practice", "two years in the trade", "first promotion behind me"),
    ("five years of practice", "six years in the trade", "several employers so far"),
    ("twelve years of practice", "fifteen years in the trade", "a senior expert for long"),
    ("twenty years, the last as director", "a head of department", "executive responsibility"),
)
