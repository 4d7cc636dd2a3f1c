package goauth2_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	oautherrors "github.com/go-oauth2/oauth2/v4/errors"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/server"
	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

// A refresh token is for its own client, who must show that it is (RFC 6749 §6, §10.4).
func TestHoleRefreshAuthenticatesNobody(t *testing.T) {
	strangers := map[string]string{
		"a wrong secret":       basic("web", "guessed"),
		"another client":       basic("other", "other-secret"),
		"no such client":       basic("nobody", ""),
		"a client that hashes": basic("verified", "guessed"),
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for name, authorization := range strangers {
				_, refresh := s.signIn("read")
				a := s.token(authorization, "grant_type", "refresh_token", "refresh_token", refresh)
				require.NotEmpty(t, a.str("access_token"), name)
			}
		},
		func(t *testing.T, s *site) {
			_, refresh := s.signIn("read")
			for name, authorization := range strangers {
				a := s.token(authorization, "grant_type", "refresh_token", "refresh_token", refresh)
				if name == "another client" {
					s.refused(a, 400, "invalid_grant")
				} else {
					s.refused(a, 401, "invalid_client")
				}
			}
			// The same when the manager is asked without the server.
			for _, tgr := range []oauth2.TokenGenerateRequest{{ClientID: "web", ClientSecret: "guessed"}, {ClientID: "other"}, {}} {
				tgr.Refresh = refresh
				_, err := s.Manager.RefreshAccessToken(t.Context(), &tgr)
				require.Equal(t, oautherrors.ErrInvalidClient, err)
			}
			require.NotEmpty(t, s.refresh(refresh).str("access_token"), "and none of that has hurt its owner")
		})
}

// A scope can be narrowed by a refresh, never widened (RFC 6749 §6).
func TestHoleRefreshWidensScope(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			_, refresh := s.signIn("read")
			require.Equal(t, "read admin", s.refresh(refresh, "scope", "read admin").str("scope"))
		},
		func(t *testing.T, s *site) {
			_, refresh := s.signIn("read write")
			s.refused(s.refresh(refresh, "scope", "read admin"), 400, "invalid_scope")
			a := s.refresh(refresh, "scope", "write")
			require.Equal(t, "write", a.str("scope"), a.raw)
			s.refused(s.refresh(a.str("refresh_token"), "scope", "read write"), 400, "invalid_scope")
		})
}

// inTurn makes the token store answer only when n calls wait for it, or all that are left: the slowest store there is.
func (s *shelf) inTurn(n int) {
	var mu sync.Mutex
	waiting, release := 0, make(chan struct{})
	s.slow = func() {
		mu.Lock()
		gate := release
		if waiting++; waiting == n {
			waiting, release = 0, make(chan struct{})
			close(gate)
		}
		mu.Unlock()
		select {
		case <-gate:
		case <-time.After(50 * time.Millisecond): // fewer are left
		}
	}
}

// race asks n times at once, and returns the answers that have a token.
func race(n int, ask func() answer) []answer {
	var wg sync.WaitGroup
	answers := make([]answer, n)
	for i := range n {
		wg.Go(func() { answers[i] = ask() })
	}
	wg.Wait()
	var won []answer
	for _, a := range answers {
		if a.str("access_token") != "" {
			won = append(won, a)
		}
	}
	return won
}

const racers = 64

// Of 64 that redeem a code at once, one gets a token.
func TestHoleCodeRedeemedTwice(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			code := s.code("read")
			s.shelf.inTurn(racers)
			require.Greater(t, len(race(racers, func() answer { return s.redeem(code) })), 1)
		},
		func(t *testing.T, s *site) {
			code := s.code("read")
			s.shelf.inTurn(racers)
			won := race(racers, func() answer { return s.redeem(code) })
			require.Len(t, won, 1)
			require.True(t, s.alive(won[0].str("access_token")), "a race does not revoke")
		})
}

// Of 64 that redeem a refresh token at once, one gets a new one.
func TestHoleRefreshRedeemedTwice(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			_, refresh := s.signIn("read")
			s.shelf.inTurn(racers)
			require.Greater(t, len(race(racers, func() answer { return s.refresh(refresh) })), 1)
		},
		func(t *testing.T, s *site) {
			_, refresh := s.signIn("read")
			s.shelf.inTurn(racers)
			won := race(racers, func() answer { return s.refresh(refresh) })
			require.Len(t, won, 1)
			s.shelf.slow = nil
			require.True(t, s.alive(won[0].str("access_token")), "a race does not revoke")
			require.Equal(t, 200, s.refresh(won[0].str("refresh_token")).status)
		})
}

// A refresh token that comes back is stolen, here or there: all that came of it ends (RFC 9700 §4.14.2). One that
// comes back within ten seconds is a retry.
func TestHoleReuseUndetected(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			_, stolen := s.signIn("read")
			a := s.refresh(stolen)
			s.refused(s.refresh(stolen), 401, "invalid_grant")
			require.Equal(t, 200, s.refresh(a.str("refresh_token")).status, "the thief goes on")
		},
		func(t *testing.T, s *site) {
			access, stolen := s.signIn("read")
			elsewhere, _ := s.signIn("read")
			a := s.refresh(stolen)
			require.False(t, s.alive(access), "what was rotated is over")
			s.advance(9 * time.Second)
			s.refused(s.refresh(stolen), 400, "invalid_grant")
			require.True(t, s.alive(a.str("access_token")), "a retry revokes nothing")
			b := s.refresh(a.str("refresh_token"))
			require.Equal(t, 200, b.status)

			s.advance(2 * time.Second)
			s.refused(s.token(basic("other", "other-secret"), "grant_type", "refresh_token", "refresh_token", stolen), 400, "invalid_grant")
			require.True(t, s.alive(b.str("access_token")), "another client has no say")
			s.refused(s.refresh(stolen), 400, "invalid_grant")
			require.False(t, s.alive(b.str("access_token")))
			s.refused(s.refresh(b.str("refresh_token")), 400, "invalid_grant")
			require.True(t, s.alive(elsewhere), "another sign-in is another family")
		})
}

// A code that comes back ends what came of it (RFC 6749 §4.1.2).
func TestHoleCodeReplayed(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			code := s.code("read")
			access := s.redeem(code).str("access_token")
			s.refused(s.redeem(code), 401, "invalid_grant")
			require.True(t, s.alive(access))
		},
		func(t *testing.T, s *site) {
			code := s.code("read")
			a := s.redeem(code)
			s.refused(s.redeem(code), 400, "invalid_grant")
			require.True(t, s.alive(a.str("access_token")), "a retry revokes nothing")
			a = s.refresh(a.str("refresh_token"))
			s.advance(11 * time.Second)
			s.refused(s.token(basic("other", "other-secret"), "grant_type", "authorization_code", "code", code,
				"redirect_uri", "https://other.example/cb", "code_verifier", codeProof), 400, "invalid_grant")
			require.True(t, s.alive(a.str("access_token")), "another client has no say")
			s.refused(s.redeem(code), 400, "invalid_grant")
			require.False(t, s.alive(a.str("access_token")))
			s.refused(s.refresh(a.str("refresh_token")), 400, "invalid_grant")
		})
}

// Revoking one of a pair revokes both (RFC 7009 §2.1).
func TestHoleRevocationHalf(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			access, refresh := s.signIn("read")
			require.NoError(t, s.Manager.RemoveAccessToken(t.Context(), access))
			require.Equal(t, 200, s.refresh(refresh).status)
			access, refresh = s.signIn("read")
			require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), refresh))
			require.True(t, s.alive(access))
		},
		func(t *testing.T, s *site) {
			access, refresh := s.signIn("read")
			require.NoError(t, s.Manager.RemoveAccessToken(t.Context(), access))
			require.False(t, s.alive(access))
			s.refused(s.refresh(refresh), 400, "invalid_grant")

			access, refresh = s.signIn("read")
			require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), refresh))
			require.False(t, s.alive(access))
			s.refused(s.refresh(refresh), 400, "invalid_grant")

			_, old := s.signIn("read")
			a := s.refresh(old)
			require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), old), "an old one of the family will do")
			require.False(t, s.alive(a.str("access_token")))
			s.refused(s.refresh(a.str("refresh_token")), 400, "invalid_grant")

			for _, nothing := range []string{"made-up", old, access} {
				require.NoError(t, s.Manager.RemoveAccessToken(t.Context(), nothing))
				require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), nothing))
			}
			require.Error(t, s.Manager.RemoveAccessToken(t.Context(), ""))
			require.Error(t, s.Manager.RemoveRefreshToken(t.Context(), ""))
		})
}

// The token store has hashes, which open nothing.
func TestHoleClearText(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			access, refresh := s.signIn("read")
			code := s.code("read")
			for _, secret := range []string{access, refresh, code} {
				require.Contains(t, s.shelf.dump(t), secret)
			}
		},
		func(t *testing.T, s *site) {
			access, refresh := s.signIn("read")
			code := s.code("read")
			dump := s.shelf.dump(t)
			for _, secret := range []string{access, refresh, code} {
				require.NotContains(t, dump, secret)
			}
			for _, kind := range []string{"goauth2code", "goauth2refresh", "goauth2family"} {
				records, err := s.store.List(t.Context(), store.Query{Kind: kind})
				require.NoError(t, err)
				require.NotEmpty(t, records)
				for _, r := range records {
					for _, secret := range []string{access, refresh, code} {
						require.NotContains(t, r.ID+string(r.Data), secret)
					}
				}
			}
			seen := 0
			for key := range s.shelf.tokens {
				seen++
				require.False(t, s.alive(key), key)
				s.refused(s.refresh(key), 400, "invalid_grant")
				s.refused(s.redeem(key), 400, "invalid_grant")
				require.NoError(t, s.Manager.RemoveAccessToken(t.Context(), key), "and revokes nothing")
				require.NoError(t, s.Manager.RemoveRefreshToken(t.Context(), key))
			}
			require.Equal(t, 3, seen)
			require.True(t, s.alive(access))
			require.Equal(t, 200, s.redeem(code).status)
			require.Equal(t, 200, s.refresh(refresh).status)
			require.NotContains(t, s.shelf.dump(t), access)
		})
}

// PKCE with S256, always (RFC 9700 §2.1.1).
func TestHolePKCE(t *testing.T) {
	ask := func(s *site, more ...string) (*url.URL, error) {
		return s.authorize(append([]string{"response_type", "code", "client_id", "web", "redirect_uri", callback}, more...)...)
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for _, more := range [][]string{nil, {"code_challenge", codeProof}, {"code_challenge", codeProof, "code_challenge_method", "plain"}} {
				to, err := ask(s, more...)
				require.NoError(t, err)
				require.NotEmpty(t, to.Query().Get("code"))
			}
		},
		func(t *testing.T, s *site) {
			for _, more := range [][]string{nil, {"code_challenge", codeProof}, {"code_challenge", codeProof, "code_challenge_method", "plain"},
				{"code_challenge", challenge, "code_challenge_method", "s256"}} {
				to, err := ask(s, more...)
				require.EqualError(t, err, "invalid_request", more)
				require.Empty(t, to.String())
			}
			for _, malformed := range []string{challenge[:42] + "=", challenge + "AA", strings.Repeat("é", 43)} {
				to, err := ask(s, "code_challenge", malformed, "code_challenge_method", "S256")
				require.True(t, err != nil || to.Query().Get("error") == "invalid_request", malformed)
				require.Empty(t, to.Query().Get("code"))
			}
			for _, tgr := range []oauth2.TokenGenerateRequest{{}, {CodeChallenge: codeProof, CodeChallengeMethod: "plain"}, {CodeChallenge: challenge}} {
				tgr.ClientID, tgr.RedirectURI = "web", callback
				_, err := s.Manager.GenerateAuthToken(t.Context(), oauth2.Code, &tgr)
				require.EqualError(t, err, "invalid_request", "without the server")
			}
			for _, wrong := range []string{strings.Repeat("x", 43), "short", challenge, strings.Repeat("x", 129), strings.Repeat("ü", 50)} {
				a := s.token(web, "grant_type", "authorization_code", "code", s.code("read"), "redirect_uri", callback, "code_verifier", wrong)
				s.refused(a, 400, "invalid_grant")
			}
			s.refused(s.token(web, "grant_type", "authorization_code", "code", s.code("read"), "redirect_uri", callback), 400, "invalid_request")
			require.Equal(t, 200, s.redeem(s.code("read")).status)
		})
}

var otherRedirects = []string{"https://web.example/elsewhere", "https://evilweb.example/callback", "https://web.example/callback?to=https://evil.example",
	"https://web.example/callback/", "https://sub.web.example/callback", "http://web.example/callback"}

// A redirect URI is one that is registered, to the letter (RFC 9700 §2.1).
func TestHoleRedirectURI(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for _, uri := range otherRedirects {
				s.codeFor("web", uri, "read")
			}
		},
		func(t *testing.T, s *site) {
			for _, uri := range append(otherRedirects, "https://evil.example/", "", ":", "https://web.example/%zz") {
				to, err := s.authorize("response_type", "code", "client_id", "web", "redirect_uri", uri,
					"code_challenge", challenge, "code_challenge_method", "S256")
				require.Equal(t, oautherrors.ErrInvalidRedirectURI, err, uri)
				require.Empty(t, to.String())
			}
			code := s.code("read")
			a := s.token(web, "grant_type", "authorization_code", "code", code, "redirect_uri", "https://web.example/", "code_verifier", codeProof)
			s.refused(a, 400, "invalid_grant")
			require.Equal(t, 200, s.redeem(code).status)
			// RFC 8252 §7.3: a native app listens where it can.
			s.manager.SetValidateURIHandler(func(string, string) error { return nil })
			s.codeFor("native", "http://127.0.0.1:51004/cb", "read")
			for _, uri := range []string{"http://127.0.0.1:51004/", "https://127.0.0.1:51004/cb", "http://localhost:51004/cb", "http://127.0.0.1:51004/cb#x", "http://a@127.0.0.1:1/cb"} {
				_, err := s.authorize("response_type", "code", "client_id", "native", "redirect_uri", uri, "code_challenge", challenge, "code_challenge_method", "S256")
				require.Equal(t, oautherrors.ErrInvalidRedirectURI, err, uri)
			}
		})
}

// An error goes only where a code may (RFC 6749 §4.1.2.1).
func TestHoleOpenRedirect(t *testing.T) {
	denies := func(http.ResponseWriter, *http.Request) (string, error) { return "", oautherrors.ErrAccessDenied }
	ask := func(s *site, client, uri string) (*url.URL, error) {
		return s.authorize("response_type", "code", "client_id", client, "redirect_uri", uri, "state", "s1", "code_challenge", challenge, "code_challenge_method", "S256")
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			to, err := ask(s, "web", "https://evil.example/")
			require.NoError(t, err)
			require.Equal(t, "evil.example", to.Host)
			s.UserAuthorizationHandler = denies
			to, err = ask(s, "nobody", "https://evil.example/")
			require.NoError(t, err)
			require.Equal(t, "evil.example", to.Host)
		},
		func(t *testing.T, _ *site) {
			asked := 0
			s := newSite(t)
			s.UserAuthorizationHandler = func(w http.ResponseWriter, r *http.Request) (string, error) {
				asked++
				return denies(w, r)
			}
			s.harden()
			for _, client := range []string{"web", "nobody"} {
				to, err := ask(s, client, "https://evil.example/")
				require.Error(t, err)
				require.Empty(t, to.String())
			}
			require.Zero(t, asked, "nobody is asked for nothing")
			to, err := ask(s, "web", callback)
			require.NoError(t, err)
			require.Equal(t, "web.example", to.Host)
			require.Equal(t, "access_denied", to.Query().Get("error"))
			require.Equal(t, "s1", to.Query().Get("state"))

			to, err = s.authorize("response_type", "code", "client_id", "web", "redirect_uri", callback, "redirect_uri", "https://evil.example/",
				"code_challenge", challenge, "code_challenge_method", "S256")
			require.Equal(t, oautherrors.ErrInvalidRequest, err)
			require.Empty(t, to.String())
		})
	t.Run("with a hook", func(t *testing.T) {
		s := newSite(t)
		var told []*server.AuthorizeRequest
		s.UserAuthorizationHandler = denies
		s.PreRedirectErrorHandler = func(_ http.ResponseWriter, req *server.AuthorizeRequest, err error) error {
			told = append(told, req)
			return err
		}
		s.harden()
		_, err := ask(s, "web", "https://evil.example/")
		require.Equal(t, oautherrors.ErrInvalidRedirectURI, err)
		require.Empty(t, told)
		_, err = ask(s, "web", callback)
		require.Equal(t, oautherrors.ErrAccessDenied, err)
		require.Len(t, told, 1)
		require.Equal(t, callback, told[0].RedirectURI)
		_, err = s.authorize("response_type", "nonsense", "client_id", "web")
		require.Error(t, err)
		require.Nil(t, told[1], "as go-oauth2 does")
	})
}

// expired is a site whose access tokens are over at once.
func expired(s *site) string {
	s.manager.SetAuthorizeCodeTokenCfg(&manage.Config{AccessTokenExp: time.Nanosecond})
	a := s.redeem(s.code("read"))
	require.Equal(s.t, 200, a.status)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+a.str("access_token"))
	_, err := s.ValidationBearerToken(r)
	require.Equal(s.t, oautherrors.ErrExpiredAccessToken, err)
	return a.str("access_token")
}

// A fault of the client's is never a 500, and what nobody knows is a 503.
func TestHoleServerErrors(t *testing.T) {
	wrapped := fmt.Errorf("with more words: %w", oautherrors.ErrInvalidScope)
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			s.refused(s.token(basic("nobody", "x"), "grant_type", "client_credentials"), 500, "server_error")
			expired(s)
			_, status, _ := s.GetErrorData(oautherrors.ErrExpiredAccessToken)
			require.Equal(t, 500, status)
			s.ClientScopeHandler = func(*oauth2.TokenGenerateRequest) (bool, error) { return false, wrapped }
			s.refused(s.token(web, "grant_type", "client_credentials"), 500, "server_error")
			code := s.codeWithoutPKCE()
			s.refused(s.token(web, "grant_type", "authorization_code", "code", code, "redirect_uri", callback, "code_verifier", codeProof), 500, "server_error")
		},
		func(t *testing.T, s *site) {
			for _, id := range []string{"nobody", "", "web\x00", strings.Repeat("w", 9000), "日本"} {
				s.refused(s.token(basic(url.QueryEscape(id), "x"), "grant_type", "client_credentials"), 401, "invalid_client")
			}
			expired(s)
			data, status, header := s.GetErrorData(oautherrors.ErrExpiredAccessToken)
			require.Equal(t, 401, status)
			require.Equal(t, "invalid_token", data["error"])
			require.Contains(t, header.Get("WWW-Authenticate"), "Bearer")

			s = newSite(t)
			s.ClientScopeHandler = func(*oauth2.TokenGenerateRequest) (bool, error) { return false, wrapped }
			s.harden()
			s.refused(s.token(web, "grant_type", "client_credentials"), 400, "invalid_scope")

			s = newSite(t)
			var heard error
			s.InternalErrorHandler = func(err error) *oautherrors.Response { heard = err; return nil }
			s.harden()
			_, refresh := s.signIn("read")
			code := s.code("read")
			away := errors.New("dial tcp 10.0.0.7:5432: connection refused")
			s.shelf.failWith(away)
			for _, a := range []answer{s.refresh(refresh), s.redeem(code), s.token(web, "grant_type", "client_credentials")} {
				s.refused(a, 503, "temporarily_unavailable")
				require.Equal(t, "1", a.header.Get("Retry-After"))
				require.NotContains(t, a.raw, "10.0.0.7")
				require.ErrorIs(t, heard, away, "their hook hears the cause")
			}
			_, err := s.Manager.LoadAccessToken(t.Context(), "any")
			require.ErrorIs(t, err, away)
			require.NotContains(t, err.Error(), "10.0.0.7", "some show it to the client")
			s.shelf.failWith(nil)
			require.Equal(t, 200, s.redeem(code).status, "nothing was consumed")
			require.Equal(t, 200, s.refresh(refresh).status)
		})
}

// codeWithoutPKCE is one for web.
func (s *site) codeWithoutPKCE() string {
	s.t.Helper()
	scopes := s.ClientScopeHandler
	s.ClientScopeHandler = nil
	defer func() { s.ClientScopeHandler = scopes }()
	to, err := s.authorize("response_type", "code", "client_id", "web", "redirect_uri", callback)
	require.NoError(s.t, err)
	return to.Query().Get("code")
}

// unhashable is an error that cannot be a map's key.
type unhashable []string

func (u unhashable) Error() string { return strings.Join(u, ", ") }

// No error of a hook or a store panics.
func TestHoleUnhashablePanics(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			s.ClientScopeHandler = func(*oauth2.TokenGenerateRequest) (bool, error) { return false, unhashable{"x"} }
			require.Panics(t, func() { s.token(web, "grant_type", "client_credentials") })
		},
		func(t *testing.T, s *site) {
			bad := unhashable{"x"}
			each := map[string]func(s *site){
				"ClientInfoHandler": func(s *site) {
					s.ClientInfoHandler = func(*http.Request) (string, string, error) { return "", "", bad }
				},
				"ClientScopeHandler": func(s *site) {
					s.ClientScopeHandler = func(*oauth2.TokenGenerateRequest) (bool, error) { return false, bad }
				},
				"ClientAuthorizedHandler": func(s *site) {
					s.ClientAuthorizedHandler = func(string, oauth2.GrantType) (bool, error) { return false, bad }
				},
				"RefreshTokenResolve": func(s *site) { s.RefreshTokenResolveHandler = func(*http.Request) (string, error) { return "", bad } },
				"RefreshingScopeHandler": func(s *site) {
					s.RefreshingScopeHandler = func(*oauth2.TokenGenerateRequest, string) (bool, error) { return false, bad }
				},
				"RefreshingValidation": func(s *site) {
					s.RefreshingValidationHandler = func(oauth2.TokenInfo) (bool, error) { return false, bad }
				},
				"PasswordAuthorization": func(s *site) {
					s.PasswordAuthorizationHandler = func(context.Context, string, string, string) (string, error) { return "", bad }
				},
				"UserAuthorizationHandler": func(s *site) {
					s.UserAuthorizationHandler = func(http.ResponseWriter, *http.Request) (string, error) { return "", bad }
				},
				"the token store": func(s *site) { s.shelf.failWith(bad) },
			}
			for name, spoil := range each {
				t.Run(name, func(t *testing.T) {
					s := newSite(t)
					require.NoError(t, s.Manager.(*manage.Manager).RemoveAccessToken(t.Context(), "x"))
					spoil(s)
					s.harden()
					s.Config.AllowedGrantTypes = append(s.Config.AllowedGrantTypes, oauth2.PasswordCredentials)
					failed := 0
					authorization := web
					if name == "ClientInfoHandler" {
						authorization = ""
					}
					for _, more := range [][]string{{"client_credentials"}, {"refresh_token", "refresh_token", "x", "scope", "read"},
						{"password", "username", "u", "password", "p"}, {"authorization_code", "code", "x", "redirect_uri", callback, "code_verifier", codeProof}} {
						a := s.token(authorization, append([]string{"grant_type"}, more...)...)
						if a.status == 503 {
							s.refused(a, 503, "temporarily_unavailable")
							failed++
						}
						require.NotEqual(t, 500, a.status)
					}
					to, err := s.authorize("response_type", "code", "client_id", "web", "redirect_uri", callback, "code_challenge", challenge, "code_challenge_method", "S256")
					require.NoError(t, err)
					if to.Query().Get("error") == "temporarily_unavailable" {
						failed++
					}
					if !strings.HasPrefix(name, "Refreshing") { // these are asked about a real token alone
						require.Positive(t, failed)
					}
				})
			}
			for _, name := range []string{"RefreshingScopeHandler", "RefreshingValidation"} {
				s := newSite(t)
				each[name](s)
				s.harden()
				_, refresh := s.signIn("read")
				s.refused(s.refresh(refresh, "scope", "read"), 503, "temporarily_unavailable")
			}
		})
}

// The statuses of RFC 6749 §5.2.
func TestHoleStatuses(t *testing.T) {
	ask := func(s *site) map[string]answer {
		s.ClientAuthorizedHandler = nil
		return map[string]answer{
			"invalid_grant":          s.redeem("made-up"),
			"unsupported_grant_type": s.token(web, "grant_type", "urn:example:unknown"),
			"invalid_client":         s.token(basic("web", "guessed"), "grant_type", "client_credentials"),
		}
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for code, a := range ask(s) {
				s.refused(a, 401, code)
				require.Empty(t, a.header.Get("WWW-Authenticate"))
			}
		},
		func(t *testing.T, s *site) {
			for code, a := range ask(s) {
				if code == "invalid_client" {
					s.refused(a, 401, code)
					require.Equal(t, `Basic realm="oauth2", charset="UTF-8"`, a.header.Get("WWW-Authenticate"))
				} else {
					s.refused(a, 400, code)
				}
				require.Equal(t, "no-store", a.header.Get("Cache-Control"))
			}
			s = newSite(t)
			heard := 0
			s.ResponseErrorHandler = func(re *oautherrors.Response) {
				heard++
				re.Description = "ours"
			}
			s.ClientAuthorizedHandler = func(string, oauth2.GrantType) (bool, error) { return false, nil }
			s.harden()
			a := s.token(web, "grant_type", "client_credentials")
			s.refused(a, 400, "unauthorized_client")
			require.Equal(t, "ours", a.str("error_description"))
			require.Equal(t, 1, heard)
		})
}

// What is in a URL is in logs (RFC 6749 §2.3.1, RFC 6750 §2.3).
func TestHoleSecretInQuery(t *testing.T) {
	inQuery := func(s *site, query, body string) answer {
		r := tokenRequest("", body)
		r.URL.RawQuery = query
		return s.ask(r)
	}
	credentials := form("grant_type", "client_credentials", "client_id", "web", "client_secret", webSecret)
	bearer := func(s *site, access string) error {
		_, err := s.ValidationBearerToken(httptest.NewRequest(http.MethodGet, "/me?access_token="+access, nil))
		return err
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			access, _ := s.signIn("read")
			require.NoError(t, bearer(s, access))
			s.SetClientInfoHandler(server.ClientFormHandler)
			require.Equal(t, 200, inQuery(s, credentials.Encode(), "").status)
			s.SetAllowGetAccessRequest(true)
			require.Equal(t, 200, s.ask(httptest.NewRequest(http.MethodGet, "/token?"+credentials.Encode(), nil)).status)
		},
		func(t *testing.T, s *site) {
			access, _ := s.signIn("read")
			require.Equal(t, oautherrors.ErrInvalidAccessToken, bearer(s, access))
			s = newSite(t)
			s.SetClientInfoHandler(server.ClientFormHandler)
			s.SetAllowGetAccessRequest(true)
			s.harden()
			s.refused(inQuery(s, credentials.Encode(), ""), 400, "invalid_request")
			s.refused(inQuery(s, "scope=read", credentials.Encode()), 400, "invalid_request")
			s.refused(s.ask(httptest.NewRequest(http.MethodGet, "/token?"+credentials.Encode(), nil)), 400, "invalid_request")
			require.Equal(t, 200, inQuery(s, "", credentials.Encode()).status)
		})
}

// Nobody can see another parameter than the server does (RFC 6749 §3.2).
func TestHoleRepeatedParameters(t *testing.T) {
	bodies := []string{"grant_type=client_credentials&scope=read&scope=write", "grant_type=client_credentials&grant_type=password&scope=read"}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for _, body := range bodies {
				require.Equal(t, 200, s.ask(tokenRequest(web, body)).status)
			}
		},
		func(t *testing.T, s *site) {
			for _, body := range bodies {
				s.refused(s.ask(tokenRequest(web, body)), 400, "invalid_request")
			}
			twice := tokenRequest(web, "grant_type=client_credentials&scope=read")
			twice.Header.Add("Authorization", basic("other", "other-secret"))
			s.refused(s.ask(twice), 400, "invalid_request")
			multipart := tokenRequest(web, "--b\r\nContent-Disposition: form-data; name=\"grant_type\"\r\n\r\nclient_credentials\r\n--b--\r\n")
			multipart.Header.Set("Content-Type", "multipart/form-data; boundary=b")
			s.refused(s.ask(multipart), 400, "invalid_request")
			require.Equal(t, 200, s.ask(tokenRequest(web, "grant_type=client_credentials&scope=read")).status)
		})
}

// A bearer token is in the header, in any case of its scheme, and the body is the handler's (RFC 6750 §2.1, RFC 9110
// §11.1).
func TestHoleBearer(t *testing.T) {
	const text = "text=hello&access_token=x"
	look := func(s *site, authorization string) (string, error) {
		r := tokenRequest(authorization, text)
		_, err := s.ValidationBearerToken(r)
		body, readErr := io.ReadAll(r.Body)
		require.NoError(s.t, readErr)
		return string(body), err
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			access, _ := s.signIn("read")
			body, err := look(s, "bearer "+access)
			require.Error(t, err)
			require.Empty(t, body)
		},
		func(t *testing.T, s *site) {
			access, _ := s.signIn("read")
			for _, scheme := range []string{"Bearer ", "bearer ", "BEARER  "} {
				body, err := look(s, scheme+access)
				require.NoError(t, err)
				require.Equal(t, text, body)
			}
			for _, authorization := range []string{"", "Bearer", "Bearer ", "Basic " + access, access} {
				body, err := look(s, authorization)
				require.Equal(t, oautherrors.ErrInvalidAccessToken, err, authorization)
				require.Equal(t, text, body)
			}
			r := httptest.NewRequest(http.MethodGet, "/me", nil)
			r.Header["Authorization"] = []string{"Bearer " + access, "Bearer " + access}
			_, err := s.ValidationBearerToken(r)
			require.Error(t, err)

			// A hook that looks elsewhere still finds it.
			s = newSite(t)
			s.AccessTokenResolveHandler = server.AccessTokenCookieResolveHandler
			s.harden()
			access, _ = s.signIn("read")
			r = httptest.NewRequest(http.MethodGet, "/me", nil)
			r.AddCookie(&http.Cookie{Name: "access_token", Value: access})
			_, err = s.ValidationBearerToken(r)
			require.NoError(t, err)
		})
}

// Basic credentials are form-encoded (RFC 6749 §2.3.1), as stock clients do.
func TestHoleBasicEncoding(t *testing.T) {
	encoded := basic(url.QueryEscape("odd"), url.QueryEscape("50%+ more"))
	dashed := basic("w%65b", "web%2Dsecret%2D1")
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			for _, authorization := range []string{encoded, dashed} {
				require.NotEqual(t, 200, s.token(authorization, "grant_type", "client_credentials").status)
			}
		},
		func(t *testing.T, s *site) {
			for _, authorization := range []string{encoded, dashed, strings.Replace(encoded, "Basic", "basic", 1)} {
				require.Equal(t, 200, s.token(authorization, "grant_type", "client_credentials").status)
			}
			for _, authorization := range []string{"Basic", "Basic !", "Basic d2Vi", basic("odd", "50%+ more"), basic("%zz", "x"), basic("", "")} {
				s.refused(s.token(authorization, "grant_type", "client_credentials"), 401, "invalid_client")
			}
			// One method in a request (RFC 6749 §2.3).
			s.refused(s.token(web, "grant_type", "client_credentials", "client_secret", webSecret), 400, "invalid_request")
			s.refused(s.token(web, "grant_type", "client_credentials", "client_id", "other"), 400, "invalid_request")
			require.Equal(t, 200, s.token(web, "grant_type", "client_credentials", "client_id", "web").status)
			s.refused(s.token("", "grant_type", "client_credentials", "client_id", "web", "client_secret", webSecret), 401, "invalid_client") // their hook is Basic
		})
}

// Neither a password nor a token in a URL (RFC 9700 §2.1.2, §2.4).
func TestHoleDefaultGrants(t *testing.T) {
	implicit := func(s *site) *url.URL {
		to, _ := s.authorize("response_type", "token", "client_id", "web", "redirect_uri", callback, "code_challenge", challenge, "code_challenge_method", "S256")
		return to
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			require.Contains(t, implicit(s).Fragment, "access_token=")
			s.PasswordAuthorizationHandler = func(context.Context, string, string, string) (string, error) { return "u", nil }
			require.Equal(t, 200, s.token(web, "grant_type", "password", "username", "u", "password", "p").status)
		},
		func(t *testing.T, s *site) {
			require.NotContains(t, implicit(s).String(), "access_token")
			s.SetAllowedResponseType(oauth2.Code, oauth2.Token)
			require.NotContains(t, implicit(s).String(), "access_token", "not even then")
			s.refused(s.token(web, "grant_type", "password", "username", "u", "password", "p"), 400, "unsupported_grant_type")
		})
}

// A password is tried only for a client that is known, by a grant that there is.
func TestHolePasswordFirst(t *testing.T) {
	tries := func(s *site) *int {
		n := 0
		s.PasswordAuthorizationHandler = func(context.Context, string, string, string) (string, error) { n++; return "u", nil }
		return &n
	}
	guess := func(s *site, authorization string) answer {
		return s.token(authorization, "grant_type", "password", "username", "u", "password", "p")
	}
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			n := tries(s)
			guess(s, basic("web", "guessed"))
			s.SetAllowedGrantType(oauth2.AuthorizationCode)
			guess(s, web)
			require.Equal(t, 2, *n)
		},
		func(t *testing.T, _ *site) {
			s := newSite(t)
			n := tries(s)
			s.harden()
			guess(s, web)
			require.Zero(t, *n)
			s.Config.AllowedGrantTypes = append(s.Config.AllowedGrantTypes, oauth2.PasswordCredentials)
			for _, stranger := range []string{basic("web", "guessed"), basic("nobody", "x"), basic("verified", "guessed")} {
				s.refused(guess(s, stranger), 401, "invalid_client")
			}
			require.Zero(t, *n)
			for _, known := range []string{web, basic("verified", "verified-secret")} {
				a := guess(s, known)
				require.Equal(t, 200, a.status)
				require.True(t, s.alive(a.str("access_token")))
			}
		})
}

// Who says nothing about scopes grants none.
func TestHoleAnyScope(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			s.ClientScopeHandler = nil
			require.Equal(t, "admin", s.token(web, "grant_type", "client_credentials", "scope", "admin").str("scope"))
		},
		func(t *testing.T, _ *site) {
			s := newSite(t)
			s.ClientScopeHandler = nil
			s.harden()
			s.refused(s.token(web, "grant_type", "client_credentials", "scope", "admin"), 400, "invalid_scope")
			require.Equal(t, 200, s.token(web, "grant_type", "client_credentials").status)
		})
}

// A client that is confidential has a secret.
func TestHoleNoSecret(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			require.Equal(t, 200, s.token(basic("open", "anything"), "grant_type", "client_credentials").status)
		},
		func(t *testing.T, s *site) {
			s.refused(s.token(basic("open", ""), "grant_type", "client_credentials"), 401, "invalid_client")
			_, err := s.Manager.GenerateAccessToken(t.Context(), oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{ClientID: "open"})
			require.Equal(t, oautherrors.ErrInvalidClient, err)
			a := s.token(basic("spa", ""), "grant_type", "authorization_code", "code", s.codeFor("spa", "https://spa.example/cb", "read"),
				"redirect_uri", "https://spa.example/cb", "code_verifier", codeProof)
			require.Equal(t, 200, a.status, "a public one has PKCE")
			a = s.token(basic("spa", ""), "grant_type", "refresh_token", "refresh_token", a.str("refresh_token"))
			require.Equal(t, 200, a.status)
			s.refused(s.token(basic("spa", ""), "grant_type", "client_credentials"), 401, "invalid_client")
		})
}

// A secret of one role has no meaning in another.
func TestHoleTokenAsCode(t *testing.T) {
	secrets := func(s *site) []string {
		access, refresh := s.signIn("read")
		return []string{access, refresh, s.code("read")}
	}
	t.Run("plain", func(t *testing.T) {
		s := newSite(t)
		s.bundled()
		s.refused(s.redeem(secrets(s)[0]), 500, "server_error")
	})
	t.Run("hardened", func(t *testing.T) {
		s := newSite(t)
		s.harden()
		all := secrets(s)
		for _, secret := range all[:2] {
			s.refused(s.redeem(secret), 400, "invalid_grant")
		}
		for _, secret := range []string{all[0], all[2]} {
			s.refused(s.refresh(secret), 400, "invalid_grant")
		}
		for _, secret := range all[1:] {
			require.False(t, s.alive(secret))
		}
	})
}

// sameJWT makes tokens as go-oauth2's JWTAccessGenerate does: from client, user and the second alone.
type sameJWT struct{}

func (sameJWT) Token(_ context.Context, data *oauth2.GenerateBasic, refresh bool) (string, string, error) {
	return "eyJhbGciOiJIUzI1NiJ9." + data.Client.GetID() + data.UserID + ".c2lnbmF0dXJl", "", nil
}

// A token is not given out a second time, with other authority.
func TestHoleSameJWT(t *testing.T) {
	plainAndHardened(t,
		func(t *testing.T, s *site) {
			s.manager.MapAccessGenerate(sameJWT{})
			a := s.token(web, "grant_type", "client_credentials", "scope", "read")
			b := s.token(web, "grant_type", "client_credentials", "scope", "read write")
			require.Equal(t, a.str("access_token"), b.str("access_token"))
			ti, err := s.Manager.LoadAccessToken(t.Context(), a.str("access_token"))
			require.NoError(t, err)
			require.Equal(t, "read write", ti.GetScope(), "who asked for less has more")
		},
		func(t *testing.T, s *site) {
			s.manager.MapAccessGenerate(sameJWT{})
			a := s.token(web, "grant_type", "client_credentials", "scope", "read")
			s.refused(s.token(web, "grant_type", "client_credentials", "scope", "read write"), 503, "temporarily_unavailable")
			ti, err := s.Manager.LoadAccessToken(t.Context(), a.str("access_token"))
			require.NoError(t, err)
			require.Equal(t, "read", ti.GetScope())
		})
}
