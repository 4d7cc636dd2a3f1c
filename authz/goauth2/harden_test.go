package goauth2_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/goauth2"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/store"
)

// All faults at once, and then nothing was changed.
func TestHardenFaults(t *testing.T) {
	s := newSite(t)
	config := s.Config
	err := goauth2.Harden(s.Server, goauth2.Config{})
	require.ErrorContains(t, err, "Tokens is required")
	require.ErrorContains(t, err, "Store is required")
	require.Same(t, config, s.Config)
	require.Same(t, s.manager, s.Manager)

	require.Error(t, goauth2.Harden(nil, goauth2.Config{}))
	require.Error(t, goauth2.Harden(&server.Server{}, goauth2.Config{}))
	s.Manager = struct{ oauth2.Manager }{s.manager}
	require.ErrorContains(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store}), "MapTokenStorage")

	s = newSite(t)
	shared := s.Config
	s.harden()
	require.False(t, shared.ForcePKCE, "the Config may be another server's too")
	require.ErrorContains(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store}), "already")
}

// Two nodes share a token store and a store of each sort: of 64 that redeem one secret at once, one wins.
func TestRaces(t *testing.T) {
	stores.Each(t, func(t *testing.T, m stores.Maker) {
		node := m.New(t)
		one, two := newSite(t), newSite(t)
		two.shelf = one.shelf
		for _, s := range []*site{one, two} {
			s.store = node()
			s.harden()
		}
		both := func(ask func(*site) answer) []answer {
			var mu sync.Mutex
			n := 0
			return race(racers, func() answer {
				mu.Lock()
				s := []*site{one, two}[n%2]
				n++
				mu.Unlock()
				return ask(s)
			})
		}
		for range m.Some(10) {
			code := one.code("read")
			won := both(func(s *site) answer { return s.redeem(code) })
			require.Len(t, won, 1)
			won = both(func(s *site) answer { return s.refresh(won[0].str("refresh_token")) })
			require.Len(t, won, 1)
			require.True(t, one.alive(won[0].str("access_token")))
			require.Equal(t, 200, two.refresh(won[0].str("refresh_token")).status)
		}
	})
}

// A revocation that comes while a refresh is under way ends what that makes.
func TestRevokeWhileRefreshing(t *testing.T) {
	s := newSite(t)
	s.harden()
	_, refresh := s.signIn("read")
	gate := &gateway{shelf: s.shelf, arrived: make(chan struct{}), open: make(chan struct{})}
	other := newSite(t)
	other.store, other.manager = s.store, s.manager
	require.NoError(t, goauth2.Harden(other.Server, goauth2.Config{Tokens: gate, Store: s.store, Now: s.now}))
	answers := make(chan answer)
	go func() { answers <- other.refresh(refresh) }()
	<-gate.arrived // the refresh token is redeemed, the new ones are made and not yet stored
	require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), refresh))
	close(gate.open)
	other.refused(<-answers, 400, "invalid_grant")
	require.Equal(t, "{}", s.shelf.dump(t), "nothing is left of it")
}

// A gateway holds a Create until it is open.
type gateway struct {
	*shelf
	arrived, open chan struct{}
}

func (g *gateway) Create(ctx context.Context, info oauth2.TokenInfo) error {
	close(g.arrived)
	<-g.open
	return g.shelf.Create(ctx, info)
}

// What a refresh replaces is over, whatever the manager is told to keep; a manager that does not rotate is a fault in
// the set-up, which the log names.
func TestRotation(t *testing.T) {
	s := newSite(t)
	s.manager.SetRefreshTokenCfg(&manage.RefreshingConfig{IsGenerateRefresh: true})
	s.harden()
	access, refresh := s.signIn("read")
	a := s.refresh(refresh)
	require.Equal(t, 200, a.status)
	require.False(t, s.alive(access))
	require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), a.str("refresh_token")))
	require.Equal(t, "{}", s.shelf.dump(t))

	var log bytes.Buffer
	s = newSite(t)
	s.manager.SetRefreshTokenCfg(&manage.RefreshingConfig{IsRemoveAccess: true})
	require.NoError(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store, Log: slog.New(slog.NewTextHandler(&log, nil))}))
	access, refresh = s.signIn("read")
	s.refused(s.refresh(refresh), 500, "server_error")
	require.Contains(t, log.String(), "IsGenerateRefresh")
	for _, secret := range []string{access, refresh, webSecret} {
		require.NotContains(t, log.String(), secret)
	}
}

// Tokens that never end are kept, and those that have ended go, with what is remembered of them.
func TestExpiry(t *testing.T) {
	s := newSite(t)
	s.manager.SetRefreshTokenCfg(manage.DefaultRefreshTokenCfg)
	s.harden()
	for range 40 {
		s.signIn("read")
	}
	count := func() (n int) {
		for _, kind := range []string{"goauth2code", "goauth2refresh", "goauth2family"} {
			records, err := s.store.List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
			require.NoError(t, err)
			n += len(records)
		}
		return n
	}
	require.Equal(t, 120, count())
	s.advance(30 * 24 * time.Hour)
	s.manager.SetAuthorizeCodeTokenCfg(&manage.Config{IsGenerateRefresh: true}) // never
	for range 20 {                                                              // what is over goes with one write in 64
		s.signIn("read")
	}
	s.advance(365 * 24 * time.Hour)
	_, refresh := s.signIn("read")
	require.Less(t, count(), 120)
	require.Equal(t, 200, s.refresh(refresh).status)

	s = newSite(t)
	s.manager.SetAuthorizeCodeTokenCfg(&manage.Config{AccessTokenExp: time.Hour, RefreshTokenExp: time.Nanosecond, IsGenerateRefresh: true})
	s.harden()
	access, refresh := s.signIn("read")
	s.refused(s.refresh(refresh), 400, "invalid_grant")
	_, err := s.Manager.LoadRefreshToken(t.Context(), refresh)
	require.Equal(t, oautherrors.ErrExpiredRefreshToken, err)
	_, err = s.Manager.LoadAccessToken(t.Context(), access)
	require.Equal(t, oautherrors.ErrExpiredAccessToken, err)
	s.manager.SetAuthorizeCodeExp(time.Nanosecond)
	s.refused(s.redeem(s.code("read")), 400, "invalid_grant")
}

// moody is a token store of other manners.
type moody struct {
	*shelf
	missing func() (oauth2.TokenInfo, error)
	fold    func(string) string
}

func (m *moody) GetByCode(ctx context.Context, key string) (oauth2.TokenInfo, error) {
	return m.find(m.shelf.get(m.fold(key)))
}

func (m *moody) GetByAccess(ctx context.Context, key string) (oauth2.TokenInfo, error) {
	return m.find(m.shelf.get(m.fold(key)))
}

func (m *moody) GetByRefresh(ctx context.Context, key string) (oauth2.TokenInfo, error) {
	return m.find(m.shelf.get(m.fold(key)))
}

func (m *moody) find(info oauth2.TokenInfo, err error) (oauth2.TokenInfo, error) {
	if info == nil && err == nil {
		return m.missing()
	}
	return info, err
}

// Token stores say "no such token" in several ways: nil, a nil of their own, an error, another one that looks like it.
func TestForeignStores(t *testing.T) {
	for name, missing := range map[string]func() (oauth2.TokenInfo, error){
		"nil":      func() (oauth2.TokenInfo, error) { return nil, nil },
		"its nil":  func() (oauth2.TokenInfo, error) { return (*models.Token)(nil), nil },
		"no rows":  func() (oauth2.TokenInfo, error) { return nil, sql.ErrNoRows },
		"its own":  func() (oauth2.TokenInfo, error) { return nil, errors.New("record not found") },
		"another ": func() (oauth2.TokenInfo, error) { return &models.Token{Access: "x", Refresh: "x", Code: "x"}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			m := &moody{s.shelf, missing, func(key string) string { return key }}
			require.NoError(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: m, Store: s.store}))
			require.False(t, s.alive("made-up"))
			s.refused(s.redeem("made-up"), 400, "invalid_grant")
			s.refused(s.refresh("made-up"), 400, "invalid_grant")
			require.NoError(t, s.Manager.RemoveAccessToken(t.Context(), "made-up"))
			access, refresh := s.signIn("read")
			require.True(t, s.alive(access))
			require.Equal(t, 200, s.refresh(refresh).status)
		})
	}
}

// What the manager goes on using and what the store keeps are not the same object.
func TestNothingIsShared(t *testing.T) {
	s := newSite(t)
	s.manager.SetExtractExtensionHandler(func(_ *oauth2.TokenGenerateRequest, ti oauth2.ExtendableTokenInfo) {
		ti.SetExtension(url.Values{"tenant": {"a"}})
	})
	s.harden()
	access, _ := s.signIn("read")
	for range 2 {
		ti, err := s.Manager.LoadAccessToken(t.Context(), access)
		require.NoError(t, err)
		e := ti.(oauth2.ExtendableTokenInfo).GetExtension()
		require.Equal(t, url.Values{"tenant": {"a"}}, e)
		require.Equal(t, access, ti.GetAccess())
		require.True(t, strings.HasPrefix(ti.GetRefresh(), "refresh-sha256-"), "of the other one there is a hash")
		e["tenant"][0] = "b"
		ti.SetUserID("root")
	}
}

// A client that is found by an error, as in go-oauth2's own client store, is unknown; one that cannot be looked up is not.
func TestNotFound(t *testing.T) {
	away := errors.New("the client store is away")
	for name, c := range map[string]struct {
		err      error
		notFound func(error) bool
		status   int
	}{
		"by its text":  {errNotFound, nil, 401},
		"away":         {away, nil, 503},
		"as is told":   {away, func(err error) bool { return errors.Is(err, away) }, 401},
		"a context's":  {context.DeadlineExceeded, nil, 503},
		"not even nil": {nil, nil, 401},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.manager.MapClientStorage(clientFunc(func() (oauth2.ClientInfo, error) { return nil, c.err }))
			require.NoError(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store, NotFound: c.notFound}))
			require.Equal(t, c.status, s.token(web, "grant_type", "client_credentials").status)
			require.Equal(t, c.status, s.token(web, "grant_type", "refresh_token", "refresh_token", "x").status)
		})
	}
}

type clientFunc func() (oauth2.ClientInfo, error)

func (f clientFunc) GetByID(context.Context, string) (oauth2.ClientInfo, error) { return f() }

// A client that hashes its secret is asked once for each request: that takes its time.
func TestVerifierIsAskedOnce(t *testing.T) {
	s := newSite(t)
	s.harden()
	v := s.clients["verified"].(*verifier)
	authorization := basic("verified", "verified-secret")
	a := s.token(authorization, "grant_type", "authorization_code", "code", s.codeFor("verified", "https://verified.example/cb", "read"),
		"redirect_uri", "https://verified.example/cb", "code_verifier", codeProof)
	require.Equal(t, 200, a.status, a.raw)
	require.EqualValues(t, 1, v.asked.Load())
	require.Equal(t, 200, s.token(authorization, "grant_type", "refresh_token", "refresh_token", a.str("refresh_token")).status)
	require.EqualValues(t, 2, v.asked.Load())
	s.refused(s.token(basic("verified", "guessed"), "grant_type", "client_credentials"), 401, "invalid_client")
	require.EqualValues(t, 3, v.asked.Load())
}

// RedirectURIs are as many as a client has.
func TestRedirectURIs(t *testing.T) {
	s := newSite(t)
	several := map[string][]string{"web": {callback, "https://web.example/second"}}
	require.NoError(t, goauth2.Harden(s.Server, goauth2.Config{Tokens: s.shelf, Store: s.store,
		RedirectURIs: func(c oauth2.ClientInfo) []string { return several[c.GetID()] }}))
	for _, uri := range several["web"] {
		s.codeFor("web", uri, "read")
	}
	_, err := s.authorize("response_type", "code", "client_id", "other", "redirect_uri", "https://other.example/cb",
		"code_challenge", challenge, "code_challenge_method", "S256")
	require.Equal(t, oautherrors.ErrInvalidRedirectURI, err)
}

// Hooks that were set go on being asked, after the client is known.
func TestHooksAreKept(t *testing.T) {
	s := newSite(t)
	var asked []string
	s.RefreshingScopeHandler = func(_ *oauth2.TokenGenerateRequest, old string) (bool, error) {
		asked = append(asked, "scope "+old)
		return true, nil
	}
	s.RefreshingValidationHandler = func(ti oauth2.TokenInfo) (bool, error) {
		asked = append(asked, "validation "+ti.GetUserID())
		return true, nil
	}
	s.ClientAuthorizedHandler = func(client string, gt oauth2.GrantType) (bool, error) {
		asked = append(asked, client+" "+string(gt))
		return true, nil
	}
	s.ExtensionFieldsHandler = func(oauth2.TokenInfo) map[string]any { return map[string]any{"tenant": "a"} }
	s.harden()
	_, refresh := s.signIn("read")
	s.refused(s.token(basic("web", "guessed"), "grant_type", "refresh_token", "refresh_token", refresh, "scope", "read"), 401, "invalid_client")
	a := s.refresh(refresh, "scope", "read")
	require.Equal(t, 200, a.status)
	require.Equal(t, "a", a.str("tenant"))
	require.Equal(t, []string{"web authorization_code", "web authorization_code", "web refresh_token", "scope read", "validation zhang-san"}, asked)
}
