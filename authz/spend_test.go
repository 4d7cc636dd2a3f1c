package authz_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

const serverError = `{"error":"server_error","error_description":"the server could not decide"}`

// spending guards a handler that is given the Delegation.
func (g *guarded) spending(f func(w http.ResponseWriter, r *http.Request, d *authz.Delegation)) http.Handler {
	return g.Require("group:42/message.write", authz.SpendInHandler)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := authz.FromContext(r.Context())
		if !ok || d.Spent() || d.Left != 0 || d.Account != "zhang-san" || d.Scope.String() != "group:42/message.write" || d.Domain != group42 {
			g.t.Errorf("before Spend: %+v", d)
		}
		f(w, r, d)
	}))
}

func TestSpendInHandler(t *testing.T) {
	g := newGuarded(t, group42)
	before := g.store.calls.Load()
	h := g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
		require.Equal(t, before, g.store.calls.Load(), "no store was asked")
		require.NoError(t, d.Spend(r.Context(), g.store))
		require.Equal(t, before+1, g.store.calls.Load())
		require.True(t, d.Spent())
		w.Header().Set("X-Left", fmt.Sprint(d.Left))
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "written")
	})
	rec := serve(h, g.request("POST", "/"))
	require.Equal(t, 201, rec.Code)
	require.Equal(t, "written", rec.Body.String())
	require.Equal(t, "9", rec.Header().Get("X-Left"))
	require.Equal(t, 9, g.left(g.token))

	// RequireFunc likewise, and on a server over another store.
	other := g.In(g.store)
	h = other.RequireFunc(func(*http.Request) (scope.Scope, error) {
		return scope.MustParse("group:42/thread:1/message.write"), nil
	}, authz.SpendInHandler)(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, _ := authz.FromContext(r.Context())
			require.NoError(t, d.Spend(r.Context(), nil))
			require.Equal(t, "group:42/thread:1", d.Domain.String())
		}))
	require.Equal(t, 200, serve(h, g.request("POST", "/")).Code)
	require.Equal(t, 8, g.left(g.token))
	require.Empty(t, g.log.String())

	// Without HTTP.
	d, err := g.Prepare(t.Context(), authz.Call{Token: g.token, Want: scope.MustParse("group:42/message.write")})
	require.NoError(t, err)
	require.Equal(t, 8, g.left(g.token))
	require.NoError(t, d.Spend(t.Context(), nil))
	require.Equal(t, 7, d.Left)
	_, err = g.Prepare(t.Context(), authz.Call{Token: g.token, Want: scope.MustParse("group:7/message.write")})
	require.ErrorIs(t, err, scope.ErrWrongDomain)

	// What the handler does is done by the delegation: it triggers nothing (P7).
	h = g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
		require.NoError(t, d.Spend(r.Context(), nil))
		issued, err := g.Emit(r.Context(), bubbleMention("by an app"))
		require.NoError(t, err)
		require.Empty(t, issued)
	})
	require.Equal(t, 200, serve(h, g.request("POST", "/")).Code)
}

// Who answers with a 2xx without having spent is found out, however it is done, and nobody else is told why.
func TestSpendInHandlerForgotten(t *testing.T) {
	g := newGuarded(t, group42)
	type handler = func(w http.ResponseWriter, r *http.Request, d *authz.Delegation)
	set := func(w http.ResponseWriter) {
		w.Header().Set("Location", "/secrets/7")
		w.Header().Set("Content-Length", "6")
		w.Header().Set("Content-Type", "text/html")
		w.Header().Del("X-Outer")
	}
	for name, h := range map[string]handler{
		"201":     func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) { set(w); w.WriteHeader(201) },
		"204":     func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) { set(w); w.WriteHeader(204) },
		"nothing": func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) { set(w) },
		"a body": func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) {
			set(w)
			_, _ = io.WriteString(w, "secret")
		},
		"a flush": func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) { set(w); w.(http.Flusher).Flush() },
		"too late": func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
			set(w)
			w.WriteHeader(201)
			_ = d.Check(r.Context())
		},
		"a deaf one": func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
			g.store.fail(errors.New("disk on fire"))
			_ = d.Spend(r.Context(), g.store)
			g.store.fail(nil)
			set(w)
			_, _ = io.WriteString(w, "secret")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "secret")
			w.WriteHeader(202)
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, logged := g.left(g.token), len(g.log.String())
			rec := httptest.NewRecorder()
			rec.Header().Set("X-Outer", "1")
			g.spending(h).ServeHTTP(rec, g.request("POST", "/"))
			require.Equal(t, 500, rec.Code)
			require.JSONEq(t, serverError, rec.Body.String())
			require.Empty(t, rec.Header().Get("Location"))
			require.Empty(t, rec.Header().Get("Content-Length"))
			require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
			require.Equal(t, "1", rec.Header().Get("X-Outer"))
			require.Equal(t, before, g.left(g.token))
			require.Contains(t, g.log.String()[logged:], "call Spend of the Delegation from FromContext")
			require.Equal(t, 1, strings.Count(g.log.String()[logged:], "level="))
		})
	}

	// Who refuses, or has nothing, need not spend.
	logged := len(g.log.String())
	for _, status := range []int{303, 304, 400, 404, 409, 500, 503} {
		rec := serve(g.spending(func(w http.ResponseWriter, _ *http.Request, _ *authz.Delegation) {
			w.Header().Set("Location", "/there")
			w.WriteHeader(status)
		}), g.request("POST", "/"))
		require.Equal(t, status, rec.Code)
		require.Equal(t, "/there", rec.Header().Get("Location"))
	}
	require.Equal(t, 10, g.left(g.token))
	require.Equal(t, logged, len(g.log.String()))

	// Nor is it a mistake to give up when the client has gone, or its time is up.
	late, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer stop()
	left, leave := context.WithCancel(t.Context())
	defer leave()
	for _, ctx := range []context.Context{left, late} {
		rec := serve(g.spending(func(w http.ResponseWriter, r *http.Request, _ *authz.Delegation) {
			w.Header().Set("Location", "/there")
			leave()
			require.Error(t, r.Context().Err())
		}), g.request("POST", "/").WithContext(ctx))
		require.Equal(t, 503, rec.Code)
		require.Empty(t, rec.Header().Get("Location"))
		require.Equal(t, ctx == late, strings.Contains(g.log.String()[logged:], "deadline exceeded"), "only then somebody hears it")
	}
	require.NotContains(t, g.log.String()[logged:], "SpendInHandler")
	require.Equal(t, 10, g.left(g.token))

	// A panic stays one.
	require.PanicsWithValue(t, "boom", func() {
		serve(g.spending(func(http.ResponseWriter, *http.Request, *authz.Delegation) { panic("boom") }), g.request("POST", "/"))
	})
}

// Refuse answers what Require would have answered, byte for byte.
func TestRefuse(t *testing.T) {
	clock := authztest.NewClock()
	var permit error
	g := newGuarded(t, group42, func(c *authz.Config) {
		c.Now = clock.Now
		c.Permit = func(context.Context, grant.Access) error { return permit }
	})
	plain := g.Require("group:42/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler runs") }))
	var then func()
	h := g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
		then()
		if err := d.Spend(r.Context(), nil); err != nil {
			authz.Refuse(w, r, err)
			return
		}
		t.Error("spent")
	})
	for name, row := range map[string]struct {
		do, undo func()
		status   int
		reason   string
	}{
		"denied":   {func() { permit = grant.ErrDenied }, func() { permit = nil }, 403, "rights_changed"},
		"a Permit": {func() { permit = errors.New("disk on fire") }, func() { permit = nil }, 503, ""},
		"a store":  {func() { g.store.fail(errors.New("disk on fire")) }, func() { g.store.fail(nil) }, 503, ""},
		"used up": {func() {
			for range g.left(g.token) {
				_, err := g.Use(t.Context(), authz.Call{Token: g.token, Want: scope.MustParse("group:42/message.write")})
				require.NoError(t, err)
			}
		}, func() { g.token = g.in(group42) }, 401, "used_up"},
		"revoked": {func() { require.NoError(t, g.Engine().RevokeAccount(t.Context(), "zhang-san")) }, func() { g.token = g.in(group42) }, 401, "revoked"},
		"expired": {func() { clock.Advance(time.Hour) }, func() { g.token = g.in(group42) }, 401, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			logged := len(g.log.String())
			then = row.do
			got := serve(h, g.request("POST", "/"))
			want := serve(plain, g.request("POST", "/"))
			row.undo()
			require.Equal(t, row.status, got.Code)
			require.Equal(t, want.Code, got.Code)
			require.Equal(t, want.Header(), got.Header())
			require.Equal(t, want.Body.String(), got.Body.String())
			require.Equal(t, row.reason, reasonOf(t, got))
			require.Equal(t, row.status == 503, strings.Contains(g.log.String()[logged:], "disk on fire"))
			if row.status != 503 {
				require.NoError(t, g.Engine().Flush(t.Context()))
				entries, err := g.Engine().Ledger(t.Context(), "zhang-san", "", 20)
				require.NoError(t, err)
				found := 0
				for _, e := range entries {
					if e.What == "refused" && e.Reason == row.reason {
						found += e.Count
					}
				}
				require.Equal(t, 2, found, "on record as well")
			}
		})
	}

	// What is refused before is refused before.
	then = func() { t.Error("the handler runs") }
	for name, token := range map[string]string{"forged": "bhst_forged", "elsewhere": g.in(scope.MustDomain("group:7"))} {
		r := g.request("POST", "/")
		r.Header.Set("Authorization", "Bearer "+token)
		want, got := serve(plain, r), serve(h, r)
		require.Equal(t, want.Code, got.Code, name)
		require.Equal(t, want.Header(), got.Header(), name)
		require.Equal(t, want.Body.String(), got.Body.String(), name)
	}
	require.Equal(t, 401, serve(h, httptest.NewRequest("POST", "/", nil)).Code)
	permit = grant.ErrDenied
	require.Equal(t, "rights_changed", reasonOf(t, serve(h, g.request("POST", "/"))))
	permit = nil

	// The host's own errors are nobody's business, and a mistake is a mistake.
	for _, row := range []struct {
		err    func(d *authz.Delegation) error
		status int
	}{
		{func(*authz.Delegation) error { return errors.New("disk on fire again") }, 503},
		{func(*authz.Delegation) error { return nil }, 503},
		{func(d *authz.Delegation) error { return errors.Join(d.Spend(ctx, nil), d.Spend(ctx, nil)) }, 500},
	} {
		rec := serve(g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) { authz.Refuse(w, r, row.err(d)) }), g.request("POST", "/"))
		require.Equal(t, row.status, rec.Code)
		require.NotContains(t, rec.Body.String(), "disk")
	}
	require.Contains(t, g.log.String(), "disk on fire again")

	// Anywhere else it has the same table, without a realm.
	for err, status := range map[error]int{grant.ErrUsedUp: 401, grant.ErrUnknown: 401, grant.ErrDenied: 403, grant.ErrInvalid: 500, errors.New("?"): 503} {
		rec := httptest.NewRecorder()
		authz.Refuse(rec, httptest.NewRequest("POST", "/", nil), err)
		require.Equal(t, status, rec.Code)
		require.Equal(t, grant.Reason(err), reasonOf(t, rec))
	}
	wrong := g.Require("group:42/message.write")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { authz.Refuse(w, r, scope.ErrWrongDomain) }))
	require.Contains(t, serve(wrong, g.request("POST", "/")).Body.String(), `"scope":"group:42/message.write"`)
}

// The writer is what it was: http.ResponseController finds all that a server's has. Plain Require hands it on as it is.
func TestSpendInHandlerWriter(t *testing.T) {
	g := newGuarded(t, group42)
	rec := httptest.NewRecorder()
	g.Require("group:42/message.write")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { require.Same(t, rec, w) })).ServeHTTP(rec, g.request("POST", "/"))

	flushed := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("POST /flush", g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
		c := http.NewResponseController(w)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Hour)))
		w.WriteHeader(http.StatusEarlyHints) // informs, and is no answer yet
		require.NoError(t, d.Spend(r.Context(), nil))
		_, _ = io.WriteString(w, "one\n")
		require.NoError(t, c.Flush())
		<-flushed
		_, _ = io.WriteString(w, "two\n")
	}))
	mux.Handle("POST /hijack", g.spending(func(w http.ResponseWriter, r *http.Request, d *authz.Delegation) {
		_, _, err := http.NewResponseController(w).Hijack()
		require.ErrorContains(t, err, "Spend")
		require.NoError(t, d.Spend(r.Context(), nil))
		conn, rw, err := http.NewResponseController(w).Hijack()
		require.NoError(t, err)
		_, _ = rw.WriteString("HTTP/1.1 202 Mine\r\nContent-Length: 0\r\n\r\n")
		_ = rw.Flush()
		_ = conn.Close()
	}))
	web := httptest.NewServer(mux)
	defer web.Close()
	post := func(path string) *http.Response {
		r, err := http.NewRequest("POST", web.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+g.token)
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		return res
	}
	res := post("/flush")
	lines := bufio.NewReader(res.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "one\n", line)
	close(flushed)
	line, err = lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "two\n", line)
	require.NoError(t, res.Body.Close())
	res = post("/hijack")
	require.Equal(t, "202 Mine", res.Status)
	require.NoError(t, res.Body.Close())
	require.Empty(t, g.log.String())
}
