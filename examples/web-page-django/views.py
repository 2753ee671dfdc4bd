"""The page, and its token endpoint: `token` is the part to copy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST


@require_GET
@ensure_csrf_cookie  # page.js sends it back with each POST
@login_required
def page(request: HttpRequest) -> HttpResponse:
    """Return the page, for whoever is signed in."""
    return render(request, "page.html", {"node": settings.LINKD_URL})


@require_POST
@never_cache
def token(request: HttpRequest) -> HttpResponse:
    """Return a token of the node for the page of whoever is signed in: good once, within 30 s.

    The key stays here. A login page is no answer to a script: 401 instead of a redirect.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"message": "sign in first"}, status=401)
    key = Path(settings.LINKD_KEY_FILE).read_text().strip()
    asked = urllib.request.Request(  # noqa: S310 - the operator's own address
        f"{settings.LINKD_URL}/v1/token",
        data=json.dumps({"channel": "notices"}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
            return HttpResponse(answer.read(), content_type="application/json")
    except urllib.error.HTTPError as error:
        return HttpResponse(error.read(), content_type="application/json", status=error.code)
    except OSError as error:
        return JsonResponse({"message": f"no node: {error}"}, status=502)
