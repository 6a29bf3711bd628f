"""What looks like personal data, by the name of a column."""

import hashlib

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.pipeline.market.generate import generate
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.personal import check_columns, looks_personal
from tests.pipeline.tables.test_real_data import DATA


@pytest.mark.parametrize(
    "column",
    [
        "email",
        "E-Mail",
        "contactEmail",
        "email_address",
        "phone",
        "mobile_number",
        "telephone2",
        "first_name",
        "FullName",
        "surname",
        "SSN",
        "date_of_birth",
        "birthYear",
        "dob",
        "street",
        "home_address",
        "passport_no",
        "national_id",
        "iban",
        "ip_address",
        *("mail", "workMail", "mail_private", "e_mail_2", "EMAIL_ADDRESS", "email_of_boss"),
        *(
            "tel",
            "tel_no",
            "homeTel",
            "telephone",
            "phone_home",
            "mobilePhone",
            "mobile",
            "my_mobile",
        ),
        *(
            "zip",
            "zip_code",
            "ZipCode",
            "zipcode",
            "home_zip",
            "postcode",
            "postal_code",
            "postalCode",
        ),
        *(
            "iban",
            "customer_iban",
            "IBAN_2",
            "lat",
            "home_lat",
            "lon",
            "lng",
            "latitude",
            "longitude",
        ),
        *(
            "username",
            "user_name",
            "userName",
            "firstname",
            "lastName",
            "LAST_NAME",
            "fname",
            "forename",
        ),
        *(
            "ip",
            "ip_addr",
            "ipAddr",
            "client_ip",
            "ipv4",
            "national_id",
            "nationalId",
            "tax_no",
            "nino",
        ),
        *("id_card", "identity_number", "personal_number", "citizen_id", "cpf", "passport", "ssn"),
        *("year_of_birth", "birthyear", "yob", "dateOfBirth", "dateofbirth", "born_in"),
        *("photo", "photo_url", "profile_url", "profilePicture", "avatar", "whatsapp", "WhatsApp"),
        *("linkedin", "LinkedIn", "linkedin_url", "linkedInProfile", "skype", "account_no"),
    ],
)
def test_personal_columns_are_recognised(column):
    assert looks_personal(column, names=False)


@pytest.mark.parametrize(
    "column",
    [
        "name",
        "company_name",
        "title",
        "location",
        "city",
        "mobility",
        "emails_sent",
        "ship_date",
        "industry",
        "idx",
        "skill_name",
        "years",
        *("inmail", "in_mail", "inMail", "mails_sent", "has_phone", "mobile_app", "is_mobile"),
        *("hotel", "telco", "mailing", "phonetics", "zipper", "postings", "posted", "post_id"),
        *("latest", "latent", "lateral", "long_text", "londoner", "tip", "ship", "skip", "ipo"),
        *("account", "birdhouse", "portfolio", "profile", "n_profile", "photography", "line"),
        *("number_of_jobs", "contact", "idx", "id", "ids", "key", "site", "norm", "card"),
    ],
)
def test_other_columns_are_let_through(column):
    assert not looks_personal(column, names=False)


def test_a_plain_name_is_personal_where_rows_are_people():
    assert looks_personal("name", names=True)
    assert not looks_personal("job_name", names=True)


def _found(table, **options):
    """Columns of a file that are refused, and why."""
    connection, findings = duckdb.connect(":memory:"), Findings()
    connection.register("file", pa.table(table))
    types = {name: kind for name, kind, *_ in connection.sql("DESCRIBE file").fetchall()}
    defaults = {"declared": (), "free_text": (), "names": False}
    check_columns(connection, findings, "file", "f", types, **defaults | options)
    connection.close()
    return {problem.where.removeprefix("f:"): problem.needed for problem in findings.problems}


@pytest.mark.parametrize("kind", [int, str, float])
def test_long_numbers_are_judged_where_the_name_hints(kind):
    numbers = [4915112345600 + i for i in range(20)]
    table = dict.fromkeys(("contact", "cell", "fax_nr", "work_number", "views", "code"), numbers)
    table = table | {"line": list(range(20))}  # Its name hints, but the numbers are short.
    table = {name: [kind(value) for value in values] for name, values in table.items()}
    found = _found(table)
    assert set(found) == {"contact", "cell", "fax_nr", "work_number"}
    assert all("phone or identity numbers" in needed for needed in found.values())
    assert set(_found(table, declared=["f:contact", "f:cell"])) == {"fax_nr", "work_number"}


def test_values_give_away_what_names_do_not():
    table = {
        "a": [f"DE89 3704 0044 0532 01{i:02d} 00" for i in range(20)],
        "b": [f"https://www.linkedin.com/in/person-{i}" for i in range(20)],
        "c": [f"+49 151 1234 56{i:02d}" for i in range(20)],
        "hash": [hashlib.sha256(bytes([i])).hexdigest()[:20].upper() for i in range(20)],
        "soc": [f"15-12{i:02d}.00" for i in range(20)],
        "url": [f"https://example.org/jobs/{i}" for i in range(20)],
    }
    found = _found(table)
    assert set(found) == {"a", "b", "c"}
    assert "bank accounts" in found["a"]
    assert "profiles of people" in found["b"]


def test_no_column_of_the_market_or_of_the_shared_sets_is_refused():
    files = {
        name: dict(zip(table.column_names, table.columns, strict=True))
        for name, table in generate(MarketConfig(size=100)).tables.items()
    }
    files |= {
        str(path): dict(zip(table.column_names, table.columns, strict=True))
        for path in sorted(DATA.glob("*/**/*.parquet"))
        for table in [pq.ParquetFile(path).read_row_group(0).slice(0, 2000)]
    }
    for name, table in files.items():
        assert not _found(table, free_text=["text", "title"], names="member" in name), name
