package authz

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// GrantTypeOperation is the grant_type that redeems the one-time code of a user's operation for a delegation token
// (RFC 6749 §4.5).
const GrantTypeOperation = "urn:behest:grant-type:operation"

// A TokenEndpoint answers POST /oauth2/token (RFC 6749 §3.2) for [GrantTypeOperation], token exchange (RFC 8693),
// client_credentials and, with a SignIn, authorization_code and refresh_token. The client is authenticated before the
// grant is judged.
//
// The operation grant takes code, which is redeemed at most once: a request that is refused for another reason leaves
// it as it was. The answer is that of RFC 6749 §5.1 with grant_id, domain, sub (the app's name for the account) uses,
// which is left out when they are unlimited, and, for a code that came through the user's client, event. A scope
// parameter must be exactly the scope of the grant, in any order, else it is invalid_scope: a token for less is not
// made here. A code that is no good is invalid_grant: its own app is told why, any other gets one and the same
// answer.
//
// Token exchange makes of a delegation token, the subject_token, one for less: see grant.Engine.Derive. The client is
// the actor: the token's own app, or one that its trigger names in Delegates, and none else; actor_token is not taken.
// Both token types are urn:ietf:params:oauth:token-type:access_token, and resource and audience the issuer. Scope, of
// one domain, says where and what; expires_in, in seconds, which is no parameter of the standard, for how long;
// authorization_details (RFC 9396) say it in an object {"type":"social_operation"}, with locations (the issuer), domain,
// actions and uses, each of which may be left out. What is left out is as the subject_token has it. More than that is invalid_scope; a
// subject_token that is no good is invalid_request (RFC 8693 §2.2.2): who may exchange it is told why, anybody else
// gets one and the same answer. The answer has issued_token_type, and act when another app's token was exchanged.
//
// All answers for delegation tokens have authorization_details. A request for a code may have them as well, if they say
// what the grant says.
//
// The token of client_credentials lives for 10 minutes, has no scope and stands for no user: it opens GET
// /oauth2/grants and nothing else.
//
// What authorization_code and refresh_token give is described under Signing in, in the package comment. Besides the
// members of RFC 6749 §5.1 the answer has sub, and username with the scope profile.
//
// When the store fails the answer is 503 with Retry-After; the code may then have been redeemed. All fields but Now,
// Log and SignIn are required. Set them before the first request.
type TokenEndpoint struct {
	Engine  *grant.Engine
	Clients *Clients
	Store   store.Store      // the engine's
	DPoP    *DPoP            // binds tokens to keys (RFC 9449); nil: it does not
	JWT     *JWTSigner       // makes the tokens of stateless grants; nil: they are not redeemed here
	Issuer  string           // the server's own URL, which is the one resource that tokens are for
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: nothing is logged
	// SignIn is for authorization_code and refresh_token. Nil: these are not supported.
	SignIn *AuthorizationEndpoint

	once     sync.Once
	standard *server.Server
	failed   error
}

type tokenAnswer struct {
	AccessToken     string       `json:"access_token"`
	TokenType       string       `json:"token_type"`
	ExpiresIn       int64        `json:"expires_in"`
	Scope           scope.Set    `json:"scope"`
	GrantID         string       `json:"grant_id"`
	Uses            int          `json:"uses,omitempty"`
	Domain          scope.Domain `json:"domain"`
	Sub             string       `json:"sub"`
	Details         []detail     `json:"authorization_details"`
	IssuedTokenType string       `json:"issued_token_type,omitempty"`
	Act             *actor       `json:"act,omitempty"`
	// Event is for grants that came through the user's client, with which the app got no more than the code.
	Event *handoverEvent `json:"event,omitempty"`
}

// ServeHTTP implements [http.Handler].
func (t *TokenEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodPost) {
		return
	}
	ctx := r.Context()
	form, err := readForm(r)
	var app *App
	if err == nil {
		app, err = t.Clients.authenticate(r, form, t.public(form.Get("grant_type")))
	}
	if err != nil {
		writeFault(ctx, w, t.Log, "token", err)
		return
	}
	switch form.Get("grant_type") {
	case "":
		writeError(w, http.StatusBadRequest, "invalid_request", "grant_type is missing")
	case GrantTypeOperation:
		answer, err := t.redeem(w, r, app, form)
		if err != nil {
			writeFault(ctx, w, t.Log, "token", err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	case grantTypeExchange:
		answer, err := t.exchange(w, r, app, form)
		if err != nil {
			writeFault(ctx, w, t.Log, "token", err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	case "client_credentials":
		if err := t.target(form, "resource"); err != nil {
			writeFault(ctx, w, t.Log, "token", err)
			return
		}
		if form.Has("authorization_details") {
			writeFault(ctx, w, t.Log, "token", badDetails("client_credentials has none: only a user's operation gives authority"))
			return
		}
		t.serve(w, r, app, form)
	case "authorization_code":
		t.signIn(w, r, app, form, "code", "redirect_uri", "code_verifier")
	case "refresh_token":
		t.signIn(w, r, app, form, "refresh_token")
	default:
		t.unsupported(w)
	}
}

// public reports whether a public client may ask, which says no more than its name: it is bound by PKCE, and by refresh
// tokens that rotate.
func (t *TokenEndpoint) public(grantType string) bool {
	return t.SignIn != nil && (grantType == "authorization_code" || grantType == "refresh_token")
}

func (t *TokenEndpoint) unsupported(w http.ResponseWriter) {
	types := GrantTypeOperation + ", " + grantTypeExchange + " or client_credentials"
	if t.SignIn != nil {
		types = GrantTypeOperation + ", " + grantTypeExchange + ", client_credentials, authorization_code or refresh_token"
	}
	writeError(w, http.StatusBadRequest, "unsupported_grant_type", "grant_type must be "+types)
}

// signIn is for the grants of the authorization endpoint.
func (t *TokenEndpoint) signIn(w http.ResponseWriter, r *http.Request, app *App, form url.Values, required ...string) {
	if t.SignIn == nil {
		t.unsupported(w)
		return
	}
	for _, name := range required {
		if form.Get(name) == "" {
			writeError(w, http.StatusBadRequest, "invalid_request", name+" is missing")
			return
		}
	}
	if !ownResource(form.Get("resource"), t.SignIn.Issuer) {
		writeError(w, http.StatusBadRequest, "invalid_target", "resource must be the issuer")
		return
	}
	t.serve(w, r, app, form)
}

// serve leaves the request to go-oauth2.
func (t *TokenEndpoint) serve(w http.ResponseWriter, r *http.Request, app *App, form url.Values) {
	t.once.Do(func() {
		var kept *signIns
		kept, t.failed = t.SignIn.signIns()
		t.standard = newStandard(&manager{t.Clients, t.Store, t.Now, kept}, t.Engine, t.Log)
	})
	if t.failed != nil {
		writeFault(r.Context(), w, t.Log, "token", t.failed)
		return
	}
	// Its error is that of writing the answer.
	_ = t.standard.HandleTokenRequest(w, standardRequest(r.Context(), app, form))
}

func (t *TokenEndpoint) redeem(w http.ResponseWriter, r *http.Request, app *App, form url.Values) (*tokenAnswer, error) {
	ctx := r.Context()
	key, err := t.proved(w, r, app)
	if err != nil {
		return nil, err
	}
	code := grant.NewSecret(form.Get("code"))
	if code.IsZero() {
		return nil, badRequest("code is missing")
	}
	if err := t.target(form, "resource"); err != nil {
		return nil, err
	}
	var asked *detail
	if form.Has("authorization_details") {
		d, err := parseDetails(form.Get("authorization_details"), t.Issuer)
		if err != nil {
			return nil, err
		}
		asked = &d
	}
	accept := func(g *grant.Grant) error { return cmp.Or(asked.exactly(g), t.acceptable(g, app, key)) }
	if text := form.Get("scope"); text != "" {
		want, err := scope.ParseSet(text)
		if err != nil {
			return nil, errScope
		}
		accept = func(g *grant.Grant) error {
			if g.Scope() != want {
				return errScope
			}
			return cmp.Or(asked.exactly(g), t.acceptable(g, app, key))
		}
	}
	g, token, err := t.Engine.RedeemFunc(ctx, app.ID, code, accept)
	switch {
	case err == nil:
	case errors.Is(err, grant.ErrExpired):
		return nil, invalidGrant("the code has expired")
	case errors.Is(err, grant.ErrUsedUp):
		return nil, invalidGrant("the code was redeemed before")
	case errors.Is(err, grant.ErrRevoked):
		return nil, invalidGrant("the grant was revoked")
	case errors.Is(err, grant.ErrUnknown):
		return nil, invalidGrant("no such code")
	default:
		return nil, err
	}
	if g.Stateless {
		if token, err = t.JWT.sign(g); err != nil {
			return nil, err
		}
	}
	answer := t.answer(g, token, app)
	if g.Deliver == grant.Redirect {
		answer.Event = &handoverOf(t.Engine, g).Event
	}
	return answer, nil
}

// proved returns the thumbprint of the key that the request proves to have, and takes the proof; empty for none.
func (t *TokenEndpoint) proved(w http.ResponseWriter, r *http.Request, app *App) (string, error) {
	if t.DPoP == nil || len(r.Header.Values("DPoP")) == 0 {
		if app.KeyBound {
			if t.DPoP != nil {
				t.DPoP.offer(w, clock(t.DPoP.Now))
			}
			return "", proofFault("this app's tokens are bound to a key: a DPoP proof is required")
		}
		return "", nil
	}
	p, err := t.DPoP.verify(w, r, "")
	if err != nil {
		return "", err
	}
	if app.KeyBound && app.JWKS != "" {
		known, err := jose.ParseSet([]byte(app.JWKS))
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(known, func(k *jose.Key) bool { return k.Thumbprint() == p.key }) {
			return "", proofFault("the proof is by a key that the app is not registered with")
		}
	}
	return p.key, t.DPoP.take(r.Context(), p)
}

// acceptable is asked before a code is used up.
func (t *TokenEndpoint) acceptable(g *grant.Grant, app *App, key string) error {
	switch {
	case !g.Stateless:
		g.Key = key
		return nil
	case app.KeyBound: // became so after the grant was issued
		return invalidGrant("a token of this grant cannot be bound to a key")
	case t.JWT == nil:
		return fmt.Errorf("%w: the grant %s is stateless, and there is nobody who signs", grant.ErrInvalid, g.ID)
	case t.Engine.Name(g.App, g.Account) != g.Account: // was so when the trigger was made
		return invalidGrant("the app sees accounts by their own names no more")
	}
	return nil
}

func (t *TokenEndpoint) answer(g *grant.Grant, token grant.Secret, app *App) *tokenAnswer {
	answer := &tokenAnswer{
		AccessToken: token.Reveal(), TokenType: "Bearer", ExpiresIn: int64(g.For / time.Second),
		Scope: g.Scope(), GrantID: g.ID, Domain: g.Domain, Sub: t.Engine.Name(app.ID, g.Account),
		Details: detailsOf(t.Issuer, g.Domain, g.Actions, g.Uses),
	}
	if g.Key != "" {
		answer.TokenType = "DPoP"
	}
	if g.Uses != grant.Unlimited {
		answer.Uses = g.Uses
	}
	return answer
}

func invalidGrant(description string) error {
	return &fault{status: http.StatusBadRequest, code: "invalid_grant", description: description}
}

var errScope = &fault{status: http.StatusBadRequest, code: "invalid_scope", description: "scope is not exactly what the grant allows; leave it out"}
