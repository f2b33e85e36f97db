"""Formats of vendors' keys and tokens, as tables for `leaks.py`: what they begin with, and what must follow.

Sources: the vendors' own documentation of their token formats; where they give none, formats seen in public scanners.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: What ends a token: nothing that could belong to it may follow.
_END: Final = r"(?![A-Za-z0-9_-])"


class Format(NamedTuple):
    """One kind of key: `tail` is matched right behind the prefix."""

    label: str
    tail: re.Pattern[str]


#: Label, prefixes, tail. The tails are one run each, or a fixed number of them: nothing to backtrack over.
_TABLE: Final[tuple[tuple[str, str, str], ...]] = (
    ("OPENAI_KEY", "sk-proj- sk-svcacct- sk-admin-", r"(?=[\w-]{20,100}T3BlbkFJ)[\w-]{48,200}"),
    ("OPENAI_KEY", "sk-", r"[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"),
    ("ANTHROPIC_KEY", "sk-ant-api03- sk-ant-admin01- sk-ant-oat01-", r"[\w-]{80,120}AA"),
    ("OPENROUTER_KEY", "sk-or-v1-", r"[0-9a-f]{64}"),
    ("LLM_KEY", "sk-", r"(?=[a-z]{0,31}\d)[0-9a-f]{32}"),
    ("LLM_KEY", "gsk_", r"[A-Za-z0-9]{52}"),
    ("LLM_KEY", "pplx-", r"[A-Za-z0-9]{48,64}"),
    ("LLM_KEY", "xai-", r"[A-Za-z0-9]{80}"),
    ("LLM_KEY", "r8_", r"[A-Za-z0-9]{37}"),
    ("HUGGINGFACE_TOKEN", "hf_", r"[A-Za-z0-9]{34}"),
    ("HUGGINGFACE_TOKEN", "api_org_", r"[A-Za-z]{34}"),
    ("AWS_KEY", "AKIA ASIA ABIA ACCA", r"[A-Z0-9]{16}"),
    ("AWS_KEY", "A3T", r"[A-Z0-9][A-Z2-7]{16}"),
    ("AWS_KEY", "ABSK", r"[A-Za-z0-9+/]{109,269}={0,2}(?![A-Za-z0-9+/=])"),
    ("AWS_KEY", "bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t", r"[A-Za-z0-9+/=]{0,400}"),
    ("GOOGLE_KEY", "AIza", r"[\w-]{35}"),
    ("GOOGLE_KEY", "GOCSPX-", r"[\w-]{28}"),
    ("GOOGLE_KEY", "ya29.", r"[\w-]{40,400}"),
    ("GITHUB_TOKEN", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{36}"),
    ("GITHUB_TOKEN", "github_pat_", r"\w{82}"),
    ("GITLAB_TOKEN", "glpat- gldt- glft- glsoat- glrt- glffct- GR1348941", r"[\w-]{20,50}"),
    ("GITLAB_TOKEN", "glpat- glrt-", r"[\w-]{20,40}\.[0-9a-z]{2}\.?[0-9a-z]{7,9}"),
    ("GITLAB_TOKEN", "glcbt-", r"[\w-]{20,60}"),
    ("GITLAB_TOKEN", "glimt-", r"[\w-]{25}"),
    ("GITLAB_TOKEN", "glptt-", r"[\w-]{40}"),
    ("GITLAB_TOKEN", "glagent-", r"[\w-]{50,400}"),
    ("GITLAB_TOKEN", "gloas-", r"[\w-]{64}"),
    ("SLACK_TOKEN", "xoxb- xoxp- xoxa- xoxo- xoxr- xoxs- xoxe-", r"(?=[\w-]{0,12}\d)[\w-]{20,200}(?!-?#)"),
    ("SLACK_TOKEN", "xoxe.xoxb- xoxe.xoxp-", r"\d-[A-Za-z0-9]{100,200}"),
    ("SLACK_TOKEN", "xapp-", r"\d-[A-Z0-9]{6,20}-\d{6,20}-[a-z0-9]{20,80}"),
    ("SLACK_WEBHOOK", "hooks.slack.com/", r"(?:services|workflows|triggers)/[A-Za-z0-9+/]{40,64}"),
    ("DISCORD_WEBHOOK", "discord.com/api/webhooks/ discordapp.com/api/webhooks/", r"\d{17,20}/[\w-]{60,80}"),
    ("STRIPE_KEY", "sk_live_ sk_test_ sk_prod_ rk_live_ rk_test_ rk_prod_", r"[A-Za-z0-9]{16,120}"),
    ("STRIPE_KEY", "whsec_", r"[A-Za-z0-9+/]{32,64}=?"),
    ("SQUARE_TOKEN", "sq0atp- sq0csp- EAAA", r"[\w-]{22,60}"),
    ("FACEBOOK_TOKEN", "EAAC EAAM EAAG EAAB", r"[A-Za-z0-9]{80,300}"),
    ("TWILIO_KEY", "SK AC", r"[0-9a-f]{32}"),
    ("SENDGRID_KEY", "SG.", r"[\w-]{16,32}\.[\w-]{32,64}"),
    ("BREVO_KEY", "xkeysib- xsmtpsib-", r"[0-9a-f]{64}-[A-Za-z0-9]{16}"),
    ("MAILGUN_KEY", "key- pubkey-", r"[0-9a-f]{32}"),
    ("NPM_TOKEN", "npm_", r"[A-Za-z0-9]{36}"),
    ("PYPI_TOKEN", "pypi-AgEIcHlwaS5vcmc pypi-AgENdGVzdC5weXBpLm9yZw", r"[\w-]{50,400}"),
    ("RUBYGEMS_TOKEN", "rubygems_", r"[0-9a-f]{48}"),
    ("CLOJARS_TOKEN", "CLOJARS_", r"[a-z0-9]{60}"),
    ("ARTIFACTORY_TOKEN", "AKCp", r"[A-Za-z0-9]{69,73}"),
    ("ARTIFACTORY_TOKEN", "cmVmd", r"[A-Za-z0-9]{59}"),
    ("ARTIFACTORY_TOKEN", "AP", r"(?=[A-Za-z]{0,40}\d)[0-9A-F][A-Za-z0-9]{32,80}"),
    ("AGE_KEY", "AGE-SECRET-KEY-1", r"[02-9AC-HJ-NP-Z]{58}"),
    ("AIRTABLE_TOKEN", "pat", r"[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    ("ALIBABA_KEY", "LTAI", r"[A-Za-z0-9]{12,20}"),
    ("ATLASSIAN_TOKEN", "ATATT3 ATCTT3 ATBB", r"[\w=-]{24,240}"),
    ("CLICKHOUSE_KEY", "4b1d", r"[A-Za-z0-9]{38}"),
    ("CLOUDFLARE_KEY", "v1.0-", r"[0-9a-f]{24}-[0-9a-f]{146}"),
    ("DATABRICKS_TOKEN", "dapi", r"[0-9a-f]{32}(?:-\d)?"),
    ("DIGITALOCEAN_TOKEN", "dop_v1_ doo_v1_ dor_v1_", r"[0-9a-f]{64}"),
    ("DOPPLER_TOKEN", "dp.pt. dp.st. dp.ct. dp.sa.", r"[A-Za-z0-9._-]{40,60}"),
    ("DUFFEL_TOKEN", "duffel_test_ duffel_live_", r"[\w=-]{43}"),
    ("DYNATRACE_TOKEN", "dt0c01. dt0s01. dt0s02. dt0s16.", r"[A-Za-z0-9]{8,24}\.[A-Za-z0-9]{64}"),
    ("EASYPOST_KEY", "EZAK EZTK", r"[A-Za-z0-9]{54}"),
    ("FLUTTERWAVE_KEY", "FLWSECK_TEST- FLWPUBK_TEST- FLWSECK-", r"[0-9a-h]{12,32}-?X?"),
    ("FLYIO_TOKEN", "fo1_", r"[\w-]{43}"),
    ("FLYIO_TOKEN", "fm1a_ fm1r_ fm2_", r"[A-Za-z0-9+/]{100,400}={0,3}"),
    ("FRAMEIO_TOKEN", "fio-u-", r"[\w=-]{64}"),
    ("GRAFANA_TOKEN", "glsa_", r"[A-Za-z0-9]{32}_[0-9a-fA-F]{8}"),
    ("GRAFANA_TOKEN", "glc_", r"[A-Za-z0-9+/]{32,400}={0,3}"),
    ("GRAFANA_TOKEN", "eyJrIjoi", r"[A-Za-z0-9]{70,400}={0,3}"),
    ("HARNESS_KEY", "pat. sat.", r"[\w-]{22}\.[0-9a-f]{24}\.[A-Za-z0-9]{20}"),
    ("VAULT_TOKEN", "hvs. hvb. hvr.", r"[\w-]{24,300}"),
    ("VAULT_TOKEN", "s.", r"(?=[A-Za-z]{0,23}\d)(?=[a-z0-9]{0,23}[A-Z])[A-Za-z0-9]{24}"),
    ("HEROKU_KEY", "HRKU-AA", r"[\w-]{58}"),
    ("INFRACOST_KEY", "ico-", r"[A-Za-z0-9]{32}"),
    ("INTRA42_SECRET", "s-s4t2ud- s-s4t2af-", r"[0-9a-f]{64}"),
    ("LINEAR_KEY", "lin_api_", r"[A-Za-z0-9]{40}"),
    ("MAPBOX_TOKEN", "pk. sk.", r"[A-Za-z0-9]{60}\.[\w-]{22}"),
    ("NETLIFY_TOKEN", "nfp_", r"[A-Za-z0-9]{36,40}"),
    ("NEWRELIC_KEY", "NRAK-", r"[A-Z0-9]{27}"),
    ("NEWRELIC_KEY", "NRJS-", r"[0-9a-f]{19}"),
    ("NEWRELIC_KEY", "NRII- NRIQ-", r"[\w-]{32}"),
    ("NOTION_TOKEN", "ntn_", r"\d{11}[A-Za-z0-9]{32,35}"),
    ("NOTION_TOKEN", "secret_", r"(?=[A-Za-z]{0,42}\d)[A-Za-z0-9]{43}"),
    ("OCTOPUS_KEY", "API-", r"(?=[A-Z]{0,25}\d)(?=[0-9A-F]{0,25}[G-Z])[A-Z0-9]{25,29}"),
    ("ONEPASSWORD_TOKEN", "ops_eyJ", r"[A-Za-z0-9+/_-]{200,1200}={0,3}"),
    ("ONEPASSWORD_KEY", "A3-", r"[A-Z0-9]{6}-[A-Z0-9]{5,6}(?:-[A-Z0-9]{5,6}){4}"),
    ("OPENSHIFT_TOKEN", "sha256~", r"[\w-]{43}"),
    ("PLANETSCALE_TOKEN", "pscale_tkn_ pscale_oauth_ pscale_pw_", r"[\w=.-]{32,64}"),
    ("POSTMAN_KEY", "PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}"),
    ("PREFECT_KEY", "pnu_", r"[a-z0-9]{36}"),
    ("PULUMI_TOKEN", "pul-", r"[0-9a-f]{40}"),
    ("README_KEY", "rdme_", r"[a-z0-9]{70}"),
    ("SCALINGO_TOKEN", "tk-us-", r"[\w-]{48}"),
    ("SENTRY_TOKEN", "sntrys_eyJ", r"[A-Za-z0-9+/=_-]{60,400}"),
    ("SENTRY_TOKEN", "sntryu_", r"[0-9a-f]{64}"),
    ("SETTLEMINT_TOKEN", "sm_aat_ sm_pat_ sm_sat_", r"[A-Za-z0-9]{16}"),
    ("SHIPPO_TOKEN", "shippo_live_ shippo_test_", r"[0-9a-fA-F]{40}"),
    ("SHOPIFY_TOKEN", "shpat_ shpca_ shppa_ shpss_", r"[0-9a-fA-F]{32}"),
    ("SONAR_TOKEN", "squ_ sqp_ sqa_", r"[0-9a-f]{40}"),
    ("SOURCEGRAPH_TOKEN", "sgp_", r"(?:[0-9a-fA-F]{16}_|local_)?[0-9a-fA-F]{40}"),
    ("TAILSCALE_KEY", "tskey-", r"[a-z]{2,10}-\w{6,24}-\w{20,64}"),
    ("TYPEFORM_TOKEN", "tfp_", r"[\w.=-]{40,64}"),
    ("YANDEX_KEY", "AQVN", r"[\w-]{35,38}"),
    ("YANDEX_KEY", "t1.", r"[\w-]{20,400}={0,2}\.[\w-]{86}"),
)


def _by_prefix() -> dict[str, tuple[Format, ...]]:
    found: dict[str, tuple[Format, ...]] = {}
    for label, prefixes, tail in _TABLE:
        form = Format(label, re.compile(tail + _END, re.ASCII))
        for prefix in prefixes.split():
            found[prefix] = (*found.get(prefix, ()), form)
    return found


#: The formats behind each prefix. One prefix may begin another one: the longer one is looked up first.
BY_PREFIX: Final = _by_prefix()


def _any_of(words: list[str]) -> str:
    """An alternative of the words by first letter: a position costs a comparison per letter, and not per word."""
    heads = sorted({word[0] for word in words})
    tails = {head: sorted((re.escape(w[1:]) for w in words if w[0] == head), key=len, reverse=True) for head in heads}
    return "|".join(f"{re.escape(head)}(?:{'|'.join(tails[head])})" for head in heads)


#: Finds a prefix at the start of a token.
PREFIX: Final = re.compile(rf"(?<![A-Za-z0-9_])(?:{_any_of(list(BY_PREFIX))})")
