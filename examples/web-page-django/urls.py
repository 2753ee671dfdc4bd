"""The site's addresses."""

from __future__ import annotations

import views
from django.contrib.auth.views import LoginView
from django.urls import path

urlpatterns = [
    path("", views.page),
    path("token", views.token),
    path("sign-in", LoginView.as_view(template_name="sign-in.html")),
]
