package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// An IntrospectionEndpoint answers POST /oauth2/introspect (RFC 7662). It spends nothing.
//
// An app learns about its own tokens only; a client that is registered with Introspect about every token, and also
// username, the account's own name. For anything else, dead tokens, codes and refresh tokens included, the answer is
// exactly {"active":false}. Besides the members of RFC 7662 §2.2 there are grant_id, domain and uses_left, which is left out
// when uses are unlimited; sub is the name by which the token's app knows the account; scope is what of the grant the
// account and the app still may, and so are authorization_details (RFC 9396 §9.2), where uses are those left; act is who
// acts, with the apps that it has the token from nested in it (RFC 8693 §4.1); cnf is the key that the token is bound
// to, whose token_type is then DPoP (RFC 9449 §6.2). A delegation token of another app is answered as a forgery is,
// after the same work. An access token of a sign-in has no domain and no action: its scope is profile, or left out, and
// username is told to its own app if it is profile. token_type_hint is not needed.
//
// When the store or Permit fails the answer is 503 with Retry-After. All fields but Now and Log are required.
type IntrospectionEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Store   store.Store      // the engine's
	Issuer  string           // iss
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: nothing is logged
	// SignIn is for access tokens of sign-ins. Nil: there are none.
	SignIn *AuthorizationEndpoint
}

type introspection struct {
	Active    bool          `json:"active"`
	Scope     string        `json:"scope,omitempty"`
	ClientID  string        `json:"client_id,omitempty"`
	Username  string        `json:"username,omitempty"`
	TokenType string        `json:"token_type,omitempty"`
	Exp       int64         `json:"exp,omitempty"`
	Iat       int64         `json:"iat,omitempty"`
	Sub       string        `json:"sub,omitempty"`
	Iss       string        `json:"iss,omitempty"`
	GrantID   string        `json:"grant_id,omitempty"`
	Domain    *scope.Domain `json:"domain,omitempty"`
	UsesLeft  *int          `json:"uses_left,omitempty"`
	Act       *actor        `json:"act,omitempty"`
	Details   []detail      `json:"authorization_details,omitempty"`
	Cnf       *confirmation `json:"cnf,omitempty"`
}

// A confirmation names the key that a token is bound to (RFC 9449 §6.2).
type confirmation struct {
	Thumbprint string `json:"jkt"`
}

// ServeHTTP implements [http.Handler].
func (i *IntrospectionEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodPost) {
		return
	}
	app, token, err := credential(i.Clients, r, false)
	var answer *introspection
	if err == nil {
		answer, err = i.introspect(r.Context(), app, token)
	}
	if err != nil {
		writeFault(r.Context(), w, i.Log, "introspect", err)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// credential reads what introspection and revocation have in common: who asks, and about what. With public the former
// may be a client that no more than says its name.
func credential(clients *Clients, r *http.Request, public bool) (*App, grant.Secret, error) {
	form, err := readForm(r)
	if err != nil {
		return nil, grant.Secret{}, err
	}
	app, err := clients.authenticate(r, form, public)
	if err != nil {
		return nil, grant.Secret{}, err
	}
	token := grant.NewSecret(form.Get("token"))
	if token.IsZero() {
		return nil, grant.Secret{}, badRequest("token is missing")
	}
	return app, token, nil
}

func (i *IntrospectionEndpoint) introspect(ctx context.Context, app *App, token grant.Secret) (*introspection, error) {
	if text := token.Reveal(); strings.HasPrefix(text, accessPrefix) || strings.HasPrefix(text, signInAccessPrefix) {
		return i.access(ctx, app, token)
	}
	d, err := i.Engine.InspectFunc(ctx, token, func(d *grant.Delegation) error {
		if d.App != app.ID && !app.Introspect {
			return errForeignToken
		}
		return nil
	})
	switch {
	case errors.Is(err, grant.ErrUnknown), grant.Reason(err) != "":
		return &introspection{}, nil
	case err != nil:
		return nil, err
	}
	granted, domain := d.Granted(), d.GrantedIn()
	answer := &introspection{
		Active: true, Scope: granted.String(), ClientID: d.App, TokenType: "Bearer", Exp: d.NotAfter.Unix(), Iat: d.IssuedAt.Unix(),
		Sub: i.Engine.Name(d.App, d.Account), Iss: i.Issuer, GrantID: d.Grant, Domain: &domain,
	}
	if key := d.Key(); key != "" {
		answer.TokenType, answer.Cnf = "DPoP", &confirmation{key}
	}
	if app.Introspect {
		answer.Username = d.Account
	}
	if d.Left != grant.Unlimited {
		answer.UsesLeft = &d.Left
	}
	answer.Act = actorsOf(d.Actors())
	answer.Details = detailsOf(i.Issuer, domain, actionsOf(granted), d.Left)
	if key := d.Key(); key != "" {
		answer.TokenType, answer.Cnf = "DPoP", &confirmation{key}
	}
	return answer, nil
}

// errForeignToken is an unknown one, after the same work: neither asks the store.
var errForeignToken = fmt.Errorf("%w: another app's", grant.ErrUnknown)

// access is for the tokens of client_credentials, which have no sub, since they stand for nobody, and for those of
// sign-ins.
func (i *IntrospectionEndpoint) access(ctx context.Context, app *App, token grant.Secret) (*introspection, error) {
	signIns, err := i.SignIn.signIns()
	if err != nil {
		return nil, err
	}
	ti, err := (&manager{clients: i.Clients, store: i.Store, now: i.Now, signIns: signIns}).LoadAccessToken(ctx, token.Reveal())
	switch {
	case noAccessToken(err):
		return &introspection{}, nil
	case err != nil:
		return nil, err
	case ti.GetClientID() != app.ID && !app.Introspect:
		return &introspection{}, nil
	}
	at, account := ti.GetAccessCreateAt(), ti.GetUserID()
	answer := &introspection{
		Active: true, ClientID: ti.GetClientID(), TokenType: "Bearer",
		Exp: at.Add(ti.GetAccessExpiresIn()).Unix(), Iat: at.Unix(), Iss: i.Issuer,
	}
	if account != "" {
		answer.Sub, answer.Scope = i.Engine.Name(ti.GetClientID(), account), ti.GetScope()
		if app.Introspect || ti.GetScope() == scopeProfile {
			answer.Username = account
		}
	}
	return answer, nil
}
