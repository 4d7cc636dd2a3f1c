package authz

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/refusals"
	"github.com/behest-go/behest/scope"
)

// RemoteConfig is what a Remote needs to know. Required are Issuer and, for tokens that are spent, ClientID and Secret, or
// for JWTs Resource.
type RemoteConfig struct {
	Issuer string // of the authorization server, as its Config has it; required
	Prefix string // of its endpoints, as its Config has it; empty: "/oauth2"
	// ClientID and Secret are those of an App with Introspect, which this resource server is to the authorization server.
	// Empty, with a Resource: nothing is spent, and only JWTs are taken.
	ClientID string
	Secret   grant.Secret
	// Resource is this API's own URL, which challenges lead to (RFC 9728, see Routes), and the audience of the JWTs that it
	// takes: the authorization server's JWTAudience. Empty: challenges name no metadata, and no JWT is taken.
	Resource string
	// Client sends requests to the authorization server, such as with TLS roots of your own. It is copied, and follows
	// no redirect, keeps no cookie and has no timeout but the one below. Nil: one that uses no proxy, with at most 256 connections.
	Client  *http.Client
	Timeout time.Duration    // of all that one use takes, its second try included; zero: 5 s. The request's own context may be shorter
	Now     func() time.Time // for JWTs; nil: time.Now
	Log     *slog.Logger     // causes that clients are not told; nil: nowhere
}

// A Remote guards the handlers of a resource server in another process, which does not share the store: its Require and
// RequireFunc take the same tokens as a [Verifier]'s and refuse with the same answers. Each use is spent by one request
// to POST /oauth2/use (see [UseEndpoint]). Nothing is remembered: a revocation holds from the next use on, here too.
//
// When the authorization server does not answer, nothing is let through: 503. A request whose answer is lost is sent
// once more, as the same use, so that it is spent once; if that is lost as well, it may have been spent for nothing. The
// token goes to the issuer's own address and to no other: redirects are not followed.
//
// The tokens of stateless triggers, which are JWTs (RFC 9068, see [JWTSigner]), it verifies alone, if they are for its
// Resource: nothing is spent, Left is grant.Unlimited, and Trigger is not told; until they expire, within 5 minutes,
// nobody can take them back. The issuer's keys are asked for at its jwks_uri, with the bounds of Cache-Control between a
// minute and an hour, for an unknown kid at most every 30 s, and good for ten minutes more while the issuer does not answer.
// One that is bound to a key (cnf) is refused.
//
// What needs the store is not to be had from afar: SpendInHandler panics at the start, and a request's Idempotency-Key
// means nothing here, so each retry of an app spends again.
//
// Make it with NewRemote. It is safe for concurrent use, and has no goroutine of its own.
type Remote struct {
	use, authorization string // authorization is empty: nothing can be spent
	resource, issuer   string
	jwksURL            string
	keys               *remoteKeys // nil: takes no JWT
	client             http.Client
	timeout            time.Duration
	now                func() time.Time
	answers            *Verifier // without an engine: it says no
}

const (
	maxRemoteAnswer = 64 << 10 // bytes
	remoteTimeout   = 5 * time.Second
	tokenPrefix     = "bhst_" // of a delegation token, as package grant has it
	maxRemoteToken  = 8 << 10
)

// NewRemote reports every fault of c at once. It sends nothing yet.
func NewRemote(c RemoteConfig) (*Remote, error) {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("authz: Remote: "+format, args...))
	}
	if !plainURL(c.Issuer) {
		fault("Issuer: %.80q is not an https URL with a plain path or none, without query, fragment and final slash", c.Issuer)
	}
	if !plainPath(c.Prefix) {
		fault("Prefix: %.80q is not a path such as \"/oauth2\"", c.Prefix)
	}
	if (c.ClientID == "") != c.Secret.IsZero() || c.ClientID == "" && c.Resource == "" {
		fault("ClientID and Secret are required, both of them, or a Resource alone to take nothing but JWTs")
	}
	if c.Resource != "" && !plainURL(c.Resource) {
		fault("Resource: %.80q is not an https URL with a plain path or none, without query, fragment and final slash", c.Resource)
	}
	if c.Timeout < 0 {
		fault("Timeout is negative")
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if c.Prefix == "" {
		c.Prefix = "/oauth2"
	}
	if c.Timeout == 0 {
		c.Timeout = remoteTimeout
	}
	m := &Remote{use: c.Issuer + c.Prefix + "/use", jwksURL: c.Issuer + c.Prefix + "/jwks", issuer: c.Issuer, resource: c.Resource,
		timeout: c.Timeout, now: func() time.Time { return clock(c.Now) }, answers: &Verifier{Realm: c.Issuer, Log: c.Log}}
	if c.ClientID != "" { // RFC 6749 §2.3.1: form-encoded, then Basic
		m.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(c.ClientID)+":"+url.QueryEscape(c.Secret.Reveal())))
	}
	if c.Resource != "" {
		m.keys = &remoteKeys{fetch: m.jwks, now: m.now}
		u, _ := url.Parse(c.Resource) // checked above
		m.answers.ResourceMetadata = wellKnown(u, resourceMetadata)
	}
	if c.Client != nil {
		m.client = *c.Client
	} else {
		m.client.Transport = &http.Transport{ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConns: 64, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 256,
			IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: c.Timeout, MaxResponseHeaderBytes: maxRemoteAnswer}
	}
	m.client.Jar, m.client.Timeout = nil, 0
	m.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return m, nil
}

// plainURL is what an issuer and a resource may be.
func plainURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && secure(u) && plainPath(u.EscapedPath()) && !strings.ContainsAny(text, "?#")
}

// Routes registers the metadata of this resource (RFC 9728) if it has a Resource, as [Server.Routes] does.
func (m *Remote) Routes(register func(pattern string, h http.Handler)) {
	if m.resource == "" {
		return
	}
	u, _ := url.Parse(m.resource) // checked
	e := &ResourceMetadataEndpoint{Resource: m.resource, Issuer: m.issuer}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		register(method+" "+resourceMetadata+u.Path, e)
	}
}

// Require is [Verifier.Require] from afar. See [Remote].
func (m *Remote) Require(pattern string, options ...Option) func(http.Handler) http.Handler {
	p, err := scope.ParsePattern(pattern)
	if err == nil && p.Action() == "" {
		err = fmt.Errorf("%w: no action", scope.ErrSyntax)
	}
	if err != nil {
		panic(fmt.Sprintf("authz: Require(%q): %v", pattern, err))
	}
	return m.RequireFunc(func(r *http.Request) (scope.Scope, error) {
		missing := ""
		want, err := p.Expand(func(name string) (string, bool) {
			value := r.PathValue(name)
			if value == "" {
				missing = name
			}
			return value, value != ""
		})
		switch {
		case missing != "":
			return want, fmt.Errorf("Require(%q): the route has no value for {%s}", pattern, missing)
		case err != nil: // a path that names no possible domain
			return want, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return want, nil
	}, options...)
}

// RequireFunc is [Verifier.RequireFunc] from afar. See [Remote]. Here resolve is also asked about tokens that only look
// like ones of the server's.
func (m *Remote) RequireFunc(resolve func(*http.Request) (scope.Scope, error), options ...Option) func(http.Handler) http.Handler {
	if spendsInHandler(options) {
		panic("authz: SpendInHandler: a Remote has no store that a transaction of the handler's could spend in")
	}
	fixed := m.answers.fixedAnswers()
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token, ok := bearer(w, r, fixed)
			if !ok {
				return
			}
			if !m.takes(token) {
				fixed[refusals.Stranger].write(w)
				return
			}
			want, err := resolve(r)
			if err == nil && want.IsZero() {
				err = errors.New("RequireFunc: neither a scope nor an error")
			}
			if err != nil {
				m.answers.unresolved(r.Context(), w, err)
				return
			}
			d, err := m.Use(r.Context(), Call{token, want})
			if err != nil {
				m.answers.refuse(r.Context(), w, fixed, want, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(&delegationContext{r.Context(), d}))
		})
	}
}

// takes says whether the token could be one of the server's: what is not costs no request.
func (m *Remote) takes(token string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	switch {
	case len(token) > maxRemoteToken:
		return false
	case looksLikeJWT(token):
		return m.keys != nil && strings.Trim(token, letters+".") == ""
	}
	return m.authorization != "" && strings.HasPrefix(token, tokenPrefix) && strings.Trim(token, letters) == ""
}

// Use verifies a token and spends a use of it, for callers without HTTP. Its errors are those of grant.Engine.Use; any
// other is the authorization server's, or the way to it: then the use may have been spent.
func (m *Remote) Use(ctx context.Context, c Call) (*Delegation, error) {
	if !m.takes(c.Token) {
		return nil, fmt.Errorf("%w: not a token of the server's", grant.ErrUnknown)
	}
	if looksLikeJWT(c.Token) {
		return m.verify(ctx, c)
	}
	// One use has one key: the server knows a second try by it.
	key, form := rand.Text(), url.Values{"token": {c.Token}, "scope": {c.Want.String()}}.Encode()
	d, lost, err := m.try(ctx, key, form, c.Want)
	if lost && ctx.Err() == nil {
		d, _, err = m.try(ctx, key, form, c.Want)
	}
	return d, err
}

// try is lost if nobody knows what became of it.
func (m *Remote) try(ctx context.Context, key, form string, want scope.Scope) (d *Delegation, lost bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout/2)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.use, strings.NewReader(form))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Authorization", m.authorization)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set(idempotencyKey, key)
	res, err := m.client.Do(req)
	if err != nil {
		return nil, true, fmt.Errorf("authz: Remote: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxRemoteAnswer+1))
	if err != nil {
		return nil, true, fmt.Errorf("authz: Remote: the answer breaks off: %w", err)
	}
	if len(text) > maxRemoteAnswer {
		return nil, false, fmt.Errorf("authz: Remote: the answer has more than %d bytes", maxRemoteAnswer)
	}
	switch {
	case res.StatusCode == http.StatusOK:
		d := new(Delegation)
		if err := json.Unmarshal(text, d); err != nil {
			return nil, false, &notOurs{err}
		}
		if d.Scope != want {
			return nil, false, errors.New("authz: Remote: the answer is for another scope")
		}
		return d, false, nil
	case res.StatusCode == http.StatusBadRequest:
		if err := refusedBy(text); err != nil {
			return nil, false, err
		}
	}
	return nil, res.StatusCode/100 == 5, fmt.Errorf("authz: Remote: POST %s answered %d%s", m.use, res.StatusCode, codeIn(text))
}

// notOurs is an error that says nothing about the token: it is never taken for one of package grant's.
type notOurs struct{ err error }

func (e *notOurs) Error() string { return "authz: Remote: " + e.err.Error() }

// reasons are the errors that grant.Reason has words for.
var reasons = map[string]error{"expired": grant.ErrExpired, "used_up": grant.ErrUsedUp, "revoked": grant.ErrRevoked,
	"wrong_domain": scope.ErrWrongDomain, "wrong_action": scope.ErrWrongAction, "rights_changed": grant.ErrDenied}

// refusedBy is the error that the server had; nil: it was not about the token.
func refusedBy(text []byte) error {
	var said struct {
		Error  string `json:"error"`
		Reason string `json:"error_reason"`
	}
	if json.Unmarshal(text, &said) != nil || said.Error != "invalid_token" && said.Error != "insufficient_scope" {
		return nil
	}
	reason := reasons[said.Reason]
	switch {
	case reason != nil:
		return fmt.Errorf("%w: says the server", reason)
	case said.Error == "invalid_token" && said.Reason == "":
		return fmt.Errorf("%w: says the server", grant.ErrUnknown)
	}
	return nil
}

// codeIn is what a log may show of an answer: its error code.
func codeIn(text []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &said) != nil || said.Error == "" || len(said.Error) > 40 || strings.Trim(said.Error, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return ": " + said.Error
}
