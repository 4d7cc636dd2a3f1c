package authz

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// The names of RFC 8693 §2.1 and §3.
const (
	grantTypeExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken   = "urn:ietf:params:oauth:token-type:access_token"
)

// An actor is who acts, and by whose leave (RFC 8693 §4.1).
type actor struct {
	Sub string `json:"sub"`
	Act *actor `json:"act,omitempty"`
}

// actorsOf nests them: the first one acts.
func actorsOf(apps []string) (act *actor) {
	for _, app := range slices.Backward(apps) {
		act = &actor{app, act}
	}
	return act
}

func (t *TokenEndpoint) exchange(w http.ResponseWriter, r *http.Request, app *App, form url.Values) (*tokenAnswer, error) {
	ctx := r.Context()
	want, err := t.wanted(form)
	if err != nil {
		return nil, err
	}
	key, err := t.proved(w, r, app)
	if err != nil {
		return nil, err
	}
	g, token, err := t.Engine.DeriveFunc(ctx, app.ID, grant.NewSecret(form.Get("subject_token")), want, func(parent *grant.Delegation, child *grant.Grant) error {
		if parent.Key() != "" {
			return badSubject("is bound to a key, which was not proved")
		}
		child.Key = key
		return nil
	})
	switch {
	case err == nil:
	case errors.Is(err, scope.ErrWiden):
		return nil, &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "more than the subject_token allows or has left, or than the client is registered for"}
	case errors.Is(err, grant.ErrDenied):
		return nil, &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "the account may no longer do this here, or not through this client"}
	case errors.Is(err, grant.ErrExpired):
		return nil, badSubject("has expired")
	case errors.Is(err, grant.ErrUsedUp):
		return nil, badSubject("has no uses left")
	case errors.Is(err, grant.ErrRevoked):
		return nil, badSubject("was revoked")
	case errors.Is(err, grant.ErrLimited):
		return nil, badSubject("was exchanged as often as it may be")
	case errors.Is(err, grant.ErrUnknown):
		return nil, badSubject("is not valid")
	case errors.Is(err, grant.ErrInvalid):
		return nil, badRequest("what is asked for is malformed")
	default:
		return nil, err
	}
	answer := t.answer(g, token, app)
	answer.IssuedTokenType = typeAccessToken
	if apps := g.Actors(); len(apps) > 1 {
		answer.Act = actorsOf(apps)
	}
	return answer, nil
}

// badSubject is for a subject_token that is no good, whatever the reason: RFC 8693 §2.2.2 wants this code.
func badSubject(why string) error { return badRequest("the subject_token " + why) }

// wanted reads what is asked for: everything but the token.
func (t *TokenEndpoint) wanted(form url.Values) (want grant.Grant, err error) {
	for _, p := range [...]struct{ name, only string }{
		{"subject_token_type", typeAccessToken},
		{"requested_token_type", typeAccessToken},
	} {
		if v := form.Get(p.name); v != p.only && (v != "" || p.name == "subject_token_type") {
			return want, badRequest(p.name + " must be " + p.only)
		}
	}
	switch {
	case form.Get("subject_token") == "":
		return want, badRequest("subject_token is missing")
	case form.Get("actor_token") != "" || form.Get("actor_token_type") != "":
		return want, badRequest("actor_token is not taken: the actor is the client that asks")
	}
	if err := cmp.Or(t.target(form, "audience"), t.target(form, "resource")); err != nil {
		return want, err
	}
	if text := form.Get("scope"); text != "" {
		set, err := scope.ParseSet(text)
		if err != nil {
			return want, errExchangeScope
		}
		for s := range set.All() {
			if !want.Domain.IsZero() && want.Domain != s.Domain() {
				return want, errExchangeScope
			}
			want.Domain, want.Actions = s.Domain(), append(want.Actions, s.Action())
		}
		slices.Sort(want.Actions)
	}
	if form.Has("authorization_details") {
		d, err := parseDetails(form.Get("authorization_details"), t.Issuer)
		if err != nil {
			return want, err
		}
		// RFC 9396 §3: together they say one thing.
		if len(want.Actions) > 0 && (len(d.Actions) > 0 && !slices.Equal(d.Actions, want.Actions) || !d.Domain.IsZero() && d.Domain != want.Domain) {
			return want, badDetails("scope and authorization_details ask for different things")
		}
		if len(want.Actions) == 0 {
			want.Domain, want.Actions = d.Domain, d.Actions
		}
		want.Uses = d.Uses
	}
	if text := form.Get("expires_in"); text != "" {
		seconds, err := strconv.ParseUint(text, 10, 31)
		if err != nil || seconds == 0 {
			return want, badRequest("expires_in must be a number of seconds")
		}
		want.For = time.Duration(seconds) * time.Second
	}
	return want, nil
}

// target refuses what is not this server (RFC 8707 §2, RFC 8693 §2.2.2): what is issued is for its API alone.
func (t *TokenEndpoint) target(form url.Values, name string) error {
	if !ownResource(form.Get(name), t.Issuer) {
		return &fault{status: http.StatusBadRequest, code: "invalid_target", description: "tokens are issued for this server alone: " + name + " is its issuer"}
	}
	return nil
}

var errExchangeScope = &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "scope must be of scopes in one domain, such as group:42/message.write"}
