package authz

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

// A RevocationEndpoint answers POST /oauth2/revoke (RFC 7009): an app gives back a delegation token, a code or a
// token of client_credentials of its own. With a delegation token or a code the whole grant ends; with any code or token
// of a sign-in, used up or not, all of that sign-in. What is not its own, or not known, is left alone, and the answer
// is the same: 200 without a body. token_type_hint is not needed.
//
// When the store fails the answer is 503 with Retry-After. All fields but Now and Log are required.
type RevocationEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Store   store.Store      // the engine's
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: nothing is logged
	// SignIn is for codes and tokens of sign-ins. Nil: there are none.
	SignIn *AuthorizationEndpoint
}

// ServeHTTP implements [http.Handler].
func (e *RevocationEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodPost) {
		return
	}
	app, token, err := credential(e.Clients, r, e.SignIn != nil)
	if err == nil {
		err = e.revoke(r.Context(), app, token)
	}
	if err != nil {
		writeFault(r.Context(), w, e.Log, "revoke", err)
		return
	}
	noStore(w)
	w.WriteHeader(http.StatusOK)
}

func (e *RevocationEndpoint) revoke(ctx context.Context, app *App, token grant.Secret) error {
	if ofSignIn(token.Reveal()) {
		signIns, err := e.SignIn.signIns()
		if err != nil || signIns == nil {
			return err
		}
		return signIns.revoke(ctx, app.ID, token.Reveal())
	}
	if !strings.HasPrefix(token.Reveal(), accessPrefix) {
		err := e.Engine.RevokeToken(ctx, app.ID, token)
		if errors.Is(err, grant.ErrUnknown) {
			return nil
		}
		return err
	}
	m := &manager{clients: e.Clients, store: e.Store, now: e.Now}
	ti, err := m.LoadAccessToken(ctx, token.Reveal())
	switch {
	case noAccessToken(err):
		return nil
	case err != nil:
		return err
	case ti.GetClientID() != app.ID:
		return nil
	}
	return m.RemoveAccessToken(ctx, token.Reveal())
}
