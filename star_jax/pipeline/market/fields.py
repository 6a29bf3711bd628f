"""Vocabulary of work: areas, fields, job titles and skills, each with several wordings.

Two texts about the same skill often share no word, because each picks one of its wordings: a
sentence encoder bridges that, word overlap does not.
"""

from typing import NamedTuple


class Field(NamedTuple):
    """One line of work. Titles and skills are tuples of wordings, the official name first."""

    area: str
    titles: tuple[tuple[str, ...], ...]
    skills: tuple[tuple[str, ...], ...]


_TEXT = """
software
  backend engineer | server developer | API programmer
  Java developer | enterprise application coder | Spring programmer
  database engineer | SQL specialist | data storage developer
  - REST APIs | building web services | designing HTTP endpoints
  - relational databases | PostgreSQL schemas | tuning SQL queries
  - Java | Spring Boot services | JVM programming
  - microservices | splitting monoliths | distributed services
  - message queues | Kafka pipelines | asynchronous event processing
  - caching | Redis | lowering response times
software
  frontend engineer | web interface developer | React programmer
  mobile developer | iOS and Android programmer | smartphone app coder
  UI engineer | browser application developer | TypeScript coder
  - React | component libraries | single-page applications
  - TypeScript | typed JavaScript | browser scripting
  - CSS | responsive page layouts | styling websites
  - mobile apps | Swift and Kotlin | building smartphone applications
  - web accessibility | screen reader support | usable pages for everyone
  - page performance | faster loading websites | bundle optimisation
software
  data scientist | machine learning practitioner | predictive modeller
  machine learning engineer | deep learning developer | neural network programmer
  data analyst | analytics specialist | insights researcher
  - machine learning | training predictive models | scikit-learn
  - statistics | hypothesis testing | experiment analysis
  - deep learning | neural networks | PyTorch
  - data visualisation | dashboards | plotting insights
  - feature engineering | preparing training data | cleaning datasets
  - language models | text mining | natural language processing
software
  DevOps engineer | infrastructure automation specialist | platform operator
  site reliability engineer | production on-call engineer | uptime specialist
  cloud engineer | AWS specialist | virtual infrastructure architect
  - Kubernetes | container orchestration | running Docker clusters
  - Terraform | infrastructure as code | provisioning cloud resources
  - monitoring | alerting with Prometheus | observability of systems
  - continuous integration | deployment pipelines | release automation
  - Linux administration | shell scripting | server maintenance
  - network security | firewalls | hardening servers
health
  registered nurse | ward nurse | hospital caregiver
  intensive care nurse | critical care specialist | ICU bedside carer
  nurse practitioner | advanced clinical nurse | primary care clinician
  - patient care | bedside nursing | looking after inpatients
  - medication administration | giving injections | intravenous drips
  - wound care | changing dressings | treating pressure sores
  - triage | emergency assessment | sorting urgent cases
  - vital signs | measuring blood pressure | observing patients
  - infection control | ward hygiene | sterile procedures
health
  pharmacist | dispensing chemist | medicines expert
  pharmacy technician | prescription assistant | dispensary worker
  clinical pharmacologist | drug trial specialist | pharmaceutical researcher
  - dispensing | filling prescriptions | handing out medicines
  - drug interactions | medication review | checking for adverse effects
  - pharmaceutical law | controlled substances | regulated drugs
  - compounding | mixing ointments | preparing capsules
  - patient counselling | advice on medicines | explaining dosages
  - stock of medicines | drug inventory | ordering pharmaceuticals
health
  physiotherapist | physical therapist | movement rehabilitation expert
  occupational therapist | daily living rehabilitation specialist | hand therapist
  sports therapist | athletic injury specialist | muscle and joint therapist
  - rehabilitation | recovery after surgery | restoring mobility
  - manual therapy | joint mobilisation | soft tissue massage
  - exercise plans | strength programmes | therapeutic training
  - gait analysis | assessing walking | posture evaluation
  - pain management | easing back pain | chronic ache treatment
  - stroke recovery | neurological therapy | relearning movement
health
  radiographer | X-ray operator | medical imaging specialist
  laboratory technician | clinical sample analyst | blood test specialist
  sonographer | ultrasound operator | prenatal scan specialist
  - X-ray imaging | radiology scans | taking radiographs
  - MRI | magnetic resonance scanning | tomography
  - blood tests | haematology samples | analysing serum
  - ultrasound | sonography | foetal scans
  - microbiology | culturing bacteria | pathogen identification
  - radiation protection | dose limits | shielding patients from rays
finance
  accountant | bookkeeper | ledger specialist
  auditor | financial statement examiner | external books reviewer
  payroll specialist | wages administrator | salary clerk
  - bookkeeping | general ledger | recording transactions
  - annual accounts | balance sheets | year-end closing
  - audits | examining financial statements | verifying books
  - payroll | paying wages | salary runs
  - VAT returns | sales tax filings | turnover tax
  - accounts payable | supplier invoices | paying bills
finance
  credit analyst | loan risk assessor | lending specialist
  investment banker | mergers adviser | capital markets specialist
  portfolio manager | asset manager | fund investor
  - credit risk | assessing borrowers | loan default models
  - financial modelling | discounted cash flows | company valuation
  - mergers and acquisitions | takeover deals | buy-side due diligence
  - portfolio management | asset allocation | investing in funds
  - derivatives | options and futures | hedging
  - mortgages | home loans | property lending
finance
  actuary | insurance mathematician | premium calculation expert
  claims adjuster | loss assessor | insurance damage examiner
  underwriter | policy risk specialist | insurance acceptance officer
  - insurance pricing | premium calculation | setting tariffs
  - claims handling | settling damages | loss adjustment
  - underwriting | accepting policies | insurability decisions
  - mortality tables | life expectancy models | pension liabilities
  - reinsurance | transferring catastrophe risk | ceding treaties
  - fraud detection | suspicious claims | uncovering false losses
finance
  lawyer | attorney | legal counsel
  paralegal | law firm assistant | litigation clerk
  compliance officer | regulatory specialist | anti money laundering expert
  - contract law | drafting agreements | negotiating clauses
  - litigation | court proceedings | representing clients at trial
  - legal research | case law | statute analysis
  - data protection | GDPR | privacy regulation
  - anti money laundering | know your customer | sanctions screening
  - employment law | dismissal disputes | works council matters
engineering
  civil engineer | bridge and road designer | infrastructure planner
  structural engineer | building statics expert | load calculation specialist
  site manager | construction supervisor | building works foreman
  - structural analysis | load calculations | statics of buildings
  - concrete | reinforced slabs | pouring foundations
  - site supervision | overseeing builders | construction schedules
  - road design | highway alignment | paving and drainage
  - surveying | measuring terrain | geodesy
  - building codes | planning permission | construction regulations
engineering
  electrical engineer | power systems designer | high voltage expert
  electrician | wiring installer | cabling technician
  embedded engineer | firmware developer | microcontroller programmer
  - circuit design | PCB layout | electronic schematics
  - wiring | electrical installation | laying cables
  - power distribution | substations | high voltage grids
  - firmware | embedded C | microcontrollers
  - PLC programming | industrial controllers | factory automation logic
  - solar installations | photovoltaic panels | inverters
engineering
  mechanical engineer | machine designer | product development engineer
  maintenance technician | machine fitter | plant mechanic
  automotive engineer | vehicle developer | powertrain specialist
  - CAD | SolidWorks drawings | three-dimensional part design
  - machining | milling and turning | CNC tools
  - hydraulics | pumps and valves | fluid power
  - finite element analysis | stress simulation | fatigue calculation
  - machine maintenance | repairing equipment | preventive servicing
  - engines | combustion and gearboxes | vehicle drivetrains
engineering
  environmental engineer | pollution control specialist | water treatment expert
  geologist | rock and soil scientist | subsurface explorer
  agronomist | crop scientist | soil fertility adviser
  - water treatment | sewage plants | purifying drinking water
  - environmental impact | ecological assessment | protecting habitats
  - waste management | recycling plants | landfill operation
  - soil sampling | drilling cores | ground investigation
  - crop management | harvest planning | growing cereals
  - emissions | air quality | greenhouse gas reporting
service
  store manager | shop leader | retail branch head
  sales assistant | shop floor seller | boutique clerk
  visual merchandiser | display window designer | product placement specialist
  - retail sales | advising shoppers | selling on the shop floor
  - cash register | handling payments | operating tills
  - merchandising | shelf displays | window decoration
  - store inventory | counting stock | replenishing shelves
  - loss prevention | deterring shoplifters | shrinkage control
  - fashion advice | styling customers | clothing trends
service
  chef | head cook | kitchen leader
  pastry cook | baker | dessert maker
  restaurant manager | dining room head | bistro leader
  - menu planning | composing dishes | seasonal recipes
  - food safety | kitchen hygiene | HACCP
  - baking | bread and pastry | cakes
  - grilling | preparing meat and fish | line cooking
  - wine service | pairing drinks | sommelier knowledge
  - kitchen purchasing | buying ingredients | food cost control
service
  warehouse worker | order picker | storage hand
  logistics coordinator | freight planner | shipment dispatcher
  truck driver | lorry operator | long-haul haulier
  - forklift driving | pallet handling | moving heavy loads
  - order picking | packing parcels | goods collection
  - freight forwarding | booking containers | customs clearance
  - route planning | scheduling deliveries | fleet dispatch
  - lorry driving | articulated trucks | haulage
  - goods receipt | unloading deliveries | checking consignments
service
  hotel receptionist | front desk agent | guest check-in clerk
  event planner | conference organiser | wedding coordinator
  tour guide | travel consultant | sightseeing host
  - guest reception | welcoming travellers | check-in desk
  - room reservations | booking systems | occupancy planning
  - event planning | organising conferences | wedding banquets
  - housekeeping | cleaning guest rooms | linen service
  - guided tours | showing visitors around | city sightseeing
  - travel booking | arranging flights | holiday itineraries
people
  primary school teacher | elementary educator | classroom tutor
  secondary school teacher | high school mathematics educator | grammar school tutor
  kindergarten teacher | nursery educator | early childhood carer
  - lesson planning | preparing classes | curriculum design
  - classroom management | calming pupils | keeping discipline
  - mathematics teaching | explaining algebra | tutoring geometry
  - early childhood | toddlers at play | preschool activities
  - grading | marking exams | assessing pupils
  - special education | learning difficulties | inclusive schooling
people
  social worker | family support adviser | youth welfare caseworker
  psychologist | talking therapist | mental health counsellor
  elderly carer | nursing home assistant | home help
  - family support | child welfare | helping parents in crisis
  - counselling | talking therapy | psychological guidance
  - addiction help | substance abuse recovery | drug relapse prevention
  - refugee assistance | integrating migrants | asylum advice
  - elderly care | dementia support | helping seniors at home
  - crisis intervention | suicide prevention | acute emotional distress
people
  graphic designer | visual artist | layout creator
  illustrator | drawing artist | picture book creator
  video editor | film cutter | motion graphics artist
  - typography | fonts and lettering | page composition
  - logo design | brand identity | corporate visual style
  - illustration | digital drawing | sketching characters
  - video editing | cutting footage | film post-production
  - photo retouching | Photoshop | image manipulation
  - animation | motion graphics | moving pictures
people
  marketing manager | campaign leader | brand promoter
  journalist | news reporter | editorial writer
  social media manager | online community host | influencer coordinator
  - advertising campaigns | promoting brands | media buying
  - search engine optimisation | ranking in Google | organic web traffic
  - copywriting | writing slogans | persuasive articles
  - news reporting | interviewing sources | investigative stories
  - social media | Instagram posts | online communities
  - market research | consumer surveys | focus groups
"""

GENERAL_SKILLS = (
    ("communication", "clear speaking", "listening well"),
    ("teamwork", "working with colleagues", "cooperation"),
    ("Microsoft Office", "spreadsheets", "word processing"),
    ("time management", "meeting deadlines", "prioritising tasks"),
    ("problem solving", "finding solutions", "troubleshooting"),
    ("leadership", "guiding a group", "motivating others"),
    ("project management", "planning milestones", "coordinating stakeholders"),
    ("customer service", "helping clients", "friendly support"),
    ("presentation", "public speaking", "slides"),
    ("English", "fluent English", "international correspondence"),
    ("negotiation", "reaching agreements", "bargaining"),
    ("reporting", "written summaries", "status updates"),
    ("training others", "onboarding newcomers", "mentoring"),
    ("budgeting", "cost awareness", "spending plans"),
    ("flexibility", "adapting quickly", "handling change"),
    ("attention to detail", "accuracy", "careful checking"),
)


def _parse(text: str) -> tuple[Field, ...]:
    fields: list[tuple[str, list[tuple[str, ...]], list[tuple[str, ...]]]] = []
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            fields.append((line, [], []))
            continue
        _, titles, skills = fields[-1]
        body = line.strip()
        target = skills if body.startswith("- ") else titles
        target.append(tuple(part.strip() for part in body.removeprefix("- ").split("|")))
    return tuple(Field(area, tuple(titles), tuple(skills)) for area, titles, skills in fields)


FIELDS = _parse(_TEXT)
