package authz_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// benchmarked is a server on a memory store, whose tokens are not counted, and one of its tokens.
func benchmarked(tb testing.TB) (*authz.Server, string) {
	tb.Helper()
	az, err := authz.New(authz.Config{
		Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []authz.App{{ID: "bookbot", Secret: grant.NewSecret("book-secret"), Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
			For: 24 * time.Hour, Uses: grant.Unlimited, RedeemWithin: time.Hour}},
	})
	require.NoError(tb, err)
	issued, err := az.Emit(context.Background(), bubbleMention("m1"))
	require.NoError(tb, err)
	_, token, err := az.Engine().Redeem(context.Background(), "bookbot", issued[0].Code)
	require.NoError(tb, err)
	return az, token.Reveal()
}

// A discard is a ResponseWriter that costs nothing.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

// requiring is all of a call behind Require: the token is verified, a use spent and put on record, and the handler runs.
func requiring(tb testing.TB, token func(string) string) (h http.Handler, request func() *http.Request, handled *int) {
	az, good := benchmarked(tb)
	handled = new(int)
	h = az.Require("group:{group}/message.write")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if d, ok := authz.FromContext(r.Context()); ok && d.Account == "zhang-san" {
			*handled++
		}
	}))
	request = func() *http.Request {
		r := httptest.NewRequest("POST", "/groups/42/messages", nil)
		r.SetPathValue("group", "42")
		r.Header.Set("Authorization", "Bearer "+token(good))
		return r
	}
	return h, request, handled
}

func same(token string) string   { return token }
func forged(token string) string { return token[:len(token)-8] + "AAAAAAAA" }

func BenchmarkRequire(b *testing.B) {
	h, request, handled := requiring(b, same)
	w, r := &discard{header: http.Header{}}, request()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		h.ServeHTTP(w, r)
		n++
	}
	require.Equal(b, n, *handled)
}

func BenchmarkRequireParallel(b *testing.B) {
	az, _ := benchmarked(b)
	h := az.Require("group:{group}/message.write")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		ev := bubbleMention("m")
		ev.Account = fmt.Sprintf("account %p", pb) // each is an account of its own, as they are
		issued, err := az.Emit(context.Background(), ev)
		if err != nil {
			b.Error(err)
			return
		}
		_, token, err := az.Engine().Redeem(context.Background(), "bookbot", issued[0].Code)
		if err != nil {
			b.Error(err)
			return
		}
		w, r := &discard{header: http.Header{}}, httptest.NewRequest("POST", "/groups/42/messages", nil)
		r.SetPathValue("group", "42")
		r.Header.Set("Authorization", "Bearer "+token.Reveal())
		for pb.Next() {
			h.ServeHTTP(w, r)
		}
		if w.status != 0 {
			b.Error(w.status)
		}
	})
}

func BenchmarkRequireForged(b *testing.B) {
	for name, forge := range map[string]func(string) string{"sealed wrongly": forged, "made up": func(string) string { return "bhst_made-up" }} {
		b.Run(name, func(b *testing.B) {
			h, request, handled := requiring(b, forge)
			w, r := &discard{header: http.Header{}}, request()
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				h.ServeHTTP(w, r)
			}
			require.Zero(b, *handled)
			require.Equal(b, 401, w.status)
		})
	}
}

// triggered is a server with 100,000 triggers, some of which are for the group.
func triggered(tb testing.TB) *authz.Server {
	tb.Helper()
	c := authz.Config{Issuer: "https://social.example", Permit: func(context.Context, grant.Access) error { return nil }}
	for a := range 100 {
		id := fmt.Sprintf("app%d", a)
		c.Apps = append(c.Apps, authz.App{ID: id, Secret: grant.NewSecret("long enough"), Actions: []string{"message.write"}})
		for n := range 1000 {
			c.Triggers = append(c.Triggers, grant.Trigger{ID: fmt.Sprintf("%s-%d", id, n), App: id, On: grant.MessagePost, In: fmt.Sprintf("group:%d", n),
				Allow: []string{"message.write"}, Match: grant.Match{Keywords: []string{fmt.Sprintf("keyword%d", a)}}, Consent: grant.Implied})
		}
	}
	az, err := authz.New(c)
	require.NoError(tb, err)
	return az
}

func BenchmarkEmitNoMatch(b *testing.B) {
	az := triggered(b)
	ev := grant.Event{ID: "m1", Operation: grant.MessagePost, Account: "zhang-san", Domain: scope.MustDomain("group:42"), Text: "Good morning, is the library open today?"}
	b.ReportAllocs()
	for b.Loop() {
		if issued, err := az.Emit(context.Background(), ev); issued != nil || err != nil {
			b.Fatal(issued, err)
		}
	}
}

func BenchmarkEmitMatch(b *testing.B) {
	az := triggered(b)
	ev := grant.Event{Operation: grant.MessagePost, Account: "zhang-san", Domain: scope.MustDomain("group:42"), Text: "Good morning, keyword7!"}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		ev.ID = fmt.Sprint(n)
		ev.Account = fmt.Sprint("account ", n%1000)
		if issued, err := az.Emit(context.Background(), ev); len(issued) != 1 || err != nil {
			b.Fatal(issued, err)
		}
	}
}

// Over the endpoint: the form, the client's authentication, the code.
func BenchmarkRedeem(b *testing.B) {
	az, _ := benchmarked(b)
	mux := http.NewServeMux()
	az.Routes(mux.Handle)
	ev := bubbleMention("")
	n := 0
	b.ReportAllocs()
	w := &discard{header: http.Header{}}
	for b.Loop() {
		b.StopTimer()
		n++
		ev.ID, ev.Account = fmt.Sprint(n), fmt.Sprint("account ", n%1000)
		issued, err := az.Emit(context.Background(), ev)
		if err != nil {
			b.Fatal(err)
		}
		body := url.Values{"grant_type": {authz.GrantTypeOperation}, "code": {issued[0].Code.Reveal()}}.Encode()
		r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("bookbot", "book-secret")
		w.status = 0
		b.StartTimer()
		mux.ServeHTTP(w, r)
		if w.status != 200 {
			b.Fatal(w.status)
		}
	}
}
