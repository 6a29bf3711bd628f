"""What looks like personal data, by the name of a column."""

import pytest

from star_jax.pipeline.tables.personal import looks_personal


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
    ],
)
def test_other_columns_are_let_through(column):
    assert not looks_personal(column, names=False)


def test_a_plain_name_is_personal_where_rows_are_people():
    assert looks_personal("name", names=True)
    assert not looks_personal("job_name", names=True)
