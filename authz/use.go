package authz

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/refusals"
	"github.com/behest-go/behest/scope"
)

// A UseEndpoint answers POST /oauth2/use: it verifies a delegation token and spends a use of it, for a resource server
// that does not share the store. [Remote] is its client. Only clients that are registered with Introspect may call it,
// authenticated as at the other endpoints; any other is told unauthorized_client, 403, and learns nothing.
//
// The parameters of the form are token and scope, the one scope that is wanted, such as "group:42/message.write". The
// answer is 200, and then the use is spent, with the Delegation as JSON: account, app, domain, scope, granted, grant,
// trigger, operation, event, iat, exp, uses and left where there is a count, and actors where the token was derived. A
// token that is bound to a key is refused like one that is not known: no proof of the key can be passed on here.
//
// With a header Idempotency-Key (1 to 255 characters, chosen at random for each use) a request may be repeated when its
// answer was lost: it spends once, and each repetition gets the same answer, but for left, which is what is left now, and
// with "Idempotency-Replayed: true". Keys are the client's own, for each grant, until the token's end; one with
// another scope is 422, key_reused; with another grant's token it is another key.
//
// A token that is refused is 400, whatever the reason, since 401 would speak of the client; the body has what
// [Verifier.Require] answers: error, which says the status by RFC 6750 §3.1 (401 for invalid_token, 403 for
// insufficient_scope), error_description, error_reason if it is a real token, and the scope where that is wrong.
// When the store or Permit fails the answer is 503 with Retry-After; the use may then have been spent. Engine and
// Clients are required.
type UseEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Log     *slog.Logger // nil: nothing is logged
}

var errUnauthorizedClient = &fault{status: http.StatusForbidden, code: "unauthorized_client", description: "the client may not spend tokens"}

// ServeHTTP implements [http.Handler].
func (u *UseEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodPost) {
		return
	}
	form, err := readForm(r)
	var app *App
	if err == nil {
		app, err = u.Clients.authenticate(r, form, false)
	}
	if err == nil && !app.Introspect {
		err = errUnauthorizedClient
	}
	if err != nil {
		writeFault(r.Context(), w, u.Log, "use", err)
		return
	}
	c, key, err := useCall(r, form)
	if err != nil {
		writeFault(r.Context(), w, u.Log, "use", err)
		return
	}
	d, again, err := u.use(r.Context(), app.ID, key, c)
	if err != nil {
		u.refuse(r.Context(), w, c.Want, err)
		return
	}
	if again {
		w.Header().Set("Idempotency-Replayed", "true")
	}
	writeJSON(w, http.StatusOK, d)
}

func useCall(r *http.Request, form url.Values) (c Call, key string, err error) {
	if c.Token = form.Get("token"); c.Token == "" {
		return c, "", badRequest("token is missing")
	}
	if c.Want, err = scope.Parse(form.Get("scope")); err != nil {
		return c, "", &fault{http.StatusBadRequest, "invalid_scope", "scope must be one scope, such as group:42/message.write", ErrInvalidRequest}
	}
	if values, keyed := r.Header[idempotencyKey]; keyed {
		ok := len(values) == 1
		if ok {
			key, ok = parseIdempotencyKey(values[0])
		}
		if !ok {
			return c, "", badRequest("the Idempotency-Key is not one quoted string of 1 to 255 characters")
		}
	}
	return c, key, nil
}

// use spends in one Apply.
func (u *UseEndpoint) use(ctx context.Context, client, key string, c Call) (d *Delegation, again bool, err error) {
	if key == "" {
		d, err = u.Engine.Use(ctx, c.Token, c.Want)
		return d, false, err
	}
	if d, err = u.Engine.Prepare(ctx, c.Token, c.Want); err != nil {
		return nil, false, err
	}
	// No app's key, at Require, begins so, and no other resource server's.
	own := sha256.Sum256([]byte(client + "\x00" + key))
	again, err = d.SpendOnce(ctx, "\x00use\x00"+base64.RawURLEncoding.EncodeToString(own[:]), sha256.Sum256([]byte(c.Want.String())))
	if state, _, _ := d.Repeat(); state == "other" {
		err = errKeyReused
	}
	return d, again, err
}

var errKeyReused = errors.New("authz: the Idempotency-Key was used for another use")

func (u *UseEndpoint) refuse(ctx context.Context, w http.ResponseWriter, want scope.Scope, err error) {
	reason := grant.Reason(err)
	said, real := refusals.Table[reason]
	switch {
	case errors.Is(err, errKeyReused):
		writeError(w, http.StatusUnprocessableEntity, "invalid_request", "the Idempotency-Key was used for another scope", "error_reason", "key_reused")
	case !real, reason == refusals.Stranger && !errors.Is(err, grant.ErrUnknown):
		writeFault(ctx, w, u.Log, "use", err)
	case reason == refusals.Stranger:
		writeError(w, http.StatusBadRequest, said.Code, said.Description)
	case reason == "wrong_domain", reason == "wrong_action":
		writeError(w, http.StatusBadRequest, said.Code, said.Description, "error_reason", reason, "scope", want.String())
	default:
		writeError(w, http.StatusBadRequest, said.Code, said.Description, "error_reason", reason)
	}
}
