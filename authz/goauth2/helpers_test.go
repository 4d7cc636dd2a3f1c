package goauth2_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	oauthstore "github.com/go-oauth2/oauth2/v4/store"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/goauth2"
	"github.com/behest-go/behest/store"
)

// A shelf is somebody's token store: careful with nothing. It takes only *models.Token, keeps what it is given and
// gives out what it keeps, unless it copies, and is slow if told so.
type shelf struct {
	mu     sync.Mutex
	tokens map[string]*models.Token
	copies bool
	fail   error
	slow   func() // before each answer
}

func newShelf() *shelf { return &shelf{tokens: map[string]*models.Token{}} }

func (s *shelf) do(f func()) error {
	s.mu.Lock()
	err, slow := s.fail, s.slow
	if err == nil {
		f()
	}
	s.mu.Unlock()
	if slow != nil {
		slow()
	}
	return err
}

func (s *shelf) Create(_ context.Context, info oauth2.TokenInfo) error {
	t := s.copy(info.(*models.Token))
	return s.do(func() {
		for _, key := range []string{t.Code, t.Access, t.Refresh} {
			if key != "" {
				s.tokens[key] = t
			}
		}
	})
}

func (s *shelf) copy(t *models.Token) *models.Token {
	if !s.copies {
		return t
	}
	c := *t
	return &c
}

func (s *shelf) remove(key string) error { return s.do(func() { delete(s.tokens, key) }) }

func (s *shelf) get(key string) (info oauth2.TokenInfo, err error) {
	err = s.do(func() {
		if t, ok := s.tokens[key]; ok {
			info = s.copy(t)
		}
	})
	return info, err
}

func (s *shelf) RemoveByCode(_ context.Context, code string) error { return s.remove(code) }

func (s *shelf) RemoveByAccess(_ context.Context, access string) error { return s.remove(access) }

func (s *shelf) RemoveByRefresh(_ context.Context, refresh string) error { return s.remove(refresh) }

func (s *shelf) GetByCode(_ context.Context, code string) (oauth2.TokenInfo, error) {
	return s.get(code)
}

func (s *shelf) GetByAccess(_ context.Context, access string) (oauth2.TokenInfo, error) {
	return s.get(access)
}

func (s *shelf) GetByRefresh(_ context.Context, refresh string) (oauth2.TokenInfo, error) {
	return s.get(refresh)
}

// dump is all that lies on the shelf.
func (s *shelf) dump(t *testing.T) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(s.tokens)
	require.NoError(t, err)
	return string(text)
}

func (s *shelf) failWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// clientStore is somebody's: an unknown client is an error, as in go-oauth2's own.
type clientStore map[string]oauth2.ClientInfo

var errNotFound = errors.New("not found")

func (c clientStore) GetByID(_ context.Context, id string) (oauth2.ClientInfo, error) {
	if client, ok := c[id]; ok {
		return client, nil
	}
	return nil, errNotFound
}

// A verifier is a client that keeps a hash.
type verifier struct {
	models.Client
	asked atomic.Int64
}

func (v *verifier) VerifyPassword(secret string) bool {
	v.asked.Add(1)
	return secret == "verified-secret"
}

const (
	callback  = "https://web.example/callback"
	webSecret = "web-secret-1"
	challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" // RFC 7636, appendix B
	codeProof = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)

// A site is a go-oauth2 server as its quick start makes it, with one client that authenticates by Basic.
type site struct {
	*server.Server
	t       *testing.T
	manager *manage.Manager
	shelf   *shelf
	clients clientStore
	store   store.Store
	mu      sync.Mutex
	ahead   time.Duration
}

func (s *site) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

func (s *site) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

func newSite(t *testing.T) *site {
	s := &site{t: t, manager: manage.NewDefaultManager(), shelf: newShelf(), store: store.NewMemory()}
	s.clients = clientStore{
		"web":      &models.Client{ID: "web", Secret: webSecret, Domain: callback},
		"other":    &models.Client{ID: "other", Secret: "other-secret", Domain: "https://other.example/cb"},
		"spa":      &models.Client{ID: "spa", Domain: "https://spa.example/cb", Public: true},
		"native":   &models.Client{ID: "native", Domain: "http://127.0.0.1/cb", Public: true},
		"open":     &models.Client{ID: "open", Domain: "https://open.example/cb"},
		"odd":      &models.Client{ID: "odd", Secret: "50%+ more", Domain: "https://odd.example/cb"},
		"verified": &verifier{Client: models.Client{ID: "verified", Domain: "https://verified.example/cb"}},
	}
	s.manager.MapClientStorage(s.clients)
	s.manager.MapTokenStorage(s.shelf)
	s.Server = server.NewDefaultServer(s.manager)
	s.UserAuthorizationHandler = func(http.ResponseWriter, *http.Request) (string, error) { return "zhang-san", nil }
	s.ClientScopeHandler = func(tgr *oauth2.TokenGenerateRequest) (bool, error) {
		return tgr.Scope == "" || tgr.Scope == "read" || tgr.Scope == "read write", nil
	}
	return s
}

// bundled puts go-oauth2's own token store in the place of the shelf.
func (s *site) bundled() {
	s.t.Helper()
	tokens, err := oauthstore.NewMemoryTokenStore()
	require.NoError(s.t, err)
	s.manager.MapTokenStorage(tokens)
}

func (s *site) harden() {
	s.t.Helper()
	require.NoError(s.t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store, Now: s.now}))
}

// plainAndHardened runs a test of a hole: on go-oauth2 as it comes, so that it is noticed when an upgrade closes it, and
// hardened.
func plainAndHardened(t *testing.T, plain, hardened func(t *testing.T, s *site)) {
	t.Run("plain", func(t *testing.T) {
		s := newSite(t)
		s.shelf.copies = true // go-oauth2's manager writes into what it is given
		plain(t, s)
	})
	t.Run("hardened", func(t *testing.T) {
		s := newSite(t)
		s.harden()
		hardened(t, s)
	})
}

// An answer is a server's.
type answer struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
}

func (a answer) str(name string) string { s, _ := a.body[name].(string); return s }

func basic(id, secret string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(id, secret)
	return r.Header.Get("Authorization")
}

func form(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return v
}

func tokenRequest(authorization, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/token", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	return r
}

func serve(t *testing.T, h http.Handler, r *http.Request) answer {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	a := answer{status: w.Code, header: w.Header(), raw: w.Body.String()}
	_ = json.Unmarshal(w.Body.Bytes(), &a.body) // not all have one
	return a
}

// token asks the token endpoint, as web unless another Authorization is given.
func (s *site) token(authorization string, pairs ...string) answer {
	s.t.Helper()
	return s.ask(tokenRequest(authorization, form(pairs...).Encode()))
}

func (s *site) ask(r *http.Request) answer {
	s.t.Helper()
	return serve(s.t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.HandleTokenRequest(w, r); err != nil {
			s.t.Error(err)
		}
	}), r)
}

var web = basic("web", webSecret)

// authorize is the way through the browser. It returns where the browser is sent, and the error of HandleAuthorizeRequest.
func (s *site) authorize(pairs ...string) (*url.URL, error) {
	r := httptest.NewRequest(http.MethodGet, "/authorize?"+form(pairs...).Encode(), nil)
	w := httptest.NewRecorder()
	err := s.HandleAuthorizeRequest(w, r)
	to, parseErr := url.Parse(w.Header().Get("Location"))
	require.NoError(s.t, parseErr)
	return to, err
}

// code is a fresh one for web, with PKCE.
func (s *site) code(scope string) string {
	s.t.Helper()
	return s.codeFor("web", callback, scope)
}

func (s *site) codeFor(client, redirect, scope string) string {
	s.t.Helper()
	to, err := s.authorize("response_type", "code", "client_id", client, "redirect_uri", redirect, "scope", scope,
		"code_challenge", challenge, "code_challenge_method", "S256")
	require.NoError(s.t, err)
	require.NotEmpty(s.t, to.Query().Get("code"), to)
	return to.Query().Get("code")
}

func (s *site) redeem(code string) answer {
	s.t.Helper()
	return s.token(web, "grant_type", "authorization_code", "code", code, "redirect_uri", callback, "code_verifier", codeProof)
}

func (s *site) refresh(token string, more ...string) answer {
	s.t.Helper()
	return s.token(web, append([]string{"grant_type", "refresh_token", "refresh_token", token}, more...)...)
}

// signIn returns an access and a refresh token.
func (s *site) signIn(scope string) (access, refresh string) {
	s.t.Helper()
	a := s.redeem(s.code(scope))
	require.Equal(s.t, 200, a.status, a.raw)
	require.NotEmpty(s.t, a.str("refresh_token"))
	return a.str("access_token"), a.str("refresh_token")
}

// alive reports whether an access token opens a protected handler.
func (s *site) alive(access string) bool {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/me", nil)
	r.Header.Set("Authorization", "Bearer "+access)
	_, err := s.ValidationBearerToken(r)
	return err == nil
}

func (s *site) refused(a answer, status int, code string) {
	s.t.Helper()
	require.Equal(s.t, status, a.status, a.raw)
	require.Equal(s.t, code, a.str("error"))
	require.Empty(s.t, a.str("access_token"))
}
