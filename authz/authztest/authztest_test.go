package authztest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/authztest"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func config() authz.Config {
	return authz.Config{
		Apps: []authz.App{
			{ID: "bookbot", Actions: []string{"message.write"}, Webhook: authztest.InboxWebhook},
			{ID: "other.bot", Actions: []string{"message.write", "member.read"}, Webhook: authztest.InboxWebhook, Secret: grant.NewSecret("its own secret")},
			{ID: "rs", Introspect: true},
		},
		Triggers: []grant.Trigger{
			{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 2},
			{App: "other.bot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}},
		},
	}
}

func mention(id, bot string) grant.Event {
	return grant.Event{ID: id, Operation: grant.Mention, Account: "zhang-san", App: bot, Domain: scope.MustDomain("group:42"), Text: "hi"}
}

func post(rw http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	body, _ := io.ReadAll(r.Body)
	rw.WriteHeader(http.StatusCreated)
	fmt.Fprintf(rw, "%s via %s: %s %s", d.Account, d.App, body, r.Header.Get("Content-Type"))
}

func TestServer(t *testing.T) {
	s := authztest.New(t, config())
	require.Equal(t, s.URL, s.Issuer())
	s.Handle("POST /groups/{group}/messages", s.Require("group:{group}/message.write")(http.HandlerFunc(post)))
	s.Handle("GET /away", http.RedirectHandler("/elsewhere", http.StatusFound))

	token := s.Token("bookbot", "li-si", "group:42")
	a := s.Do(token, "POST", "/groups/42/messages", `{"text":"hello"}`)
	require.Equal(t, 201, a.Status)
	require.Equal(t, `li-si via bookbot: {"text":"hello"} application/json`, a.Body)
	require.Empty(t, a.Reason)
	a = s.Do(token, "POST", "/groups/7/messages", "")
	require.Equal(t, []any{403, "wrong_domain"}, []any{a.Status, a.Reason})
	require.Contains(t, a.Header.Get("WWW-Authenticate"), "insufficient_scope")
	require.Equal(t, 401, s.Do("", "POST", "/groups/42/messages", "").Status)
	require.Equal(t, 302, s.Do("", "GET", "/away", "").Status, "redirects are not followed")
	require.NotEqual(t, token, s.Token("bookbot", "li-si", "group:42"), "each is a token of its own")

	s.Clock.Advance(time.Hour - time.Second)
	require.Equal(t, 201, s.Do(token, "POST", "/groups/42/messages", "").Status)
	s.Clock.Advance(time.Second)
	require.Equal(t, "expired", s.Do(token, "POST", "/groups/42/messages", "").Reason)
	require.True(t, s.Inbox.Empty(), "Token is no push")

	// Token gives all that the app may do, whatever the triggers.
	d, err := s.Use(t.Context(), authz.Call{Token: s.Token("other.bot", "li-si", "channel:1"), Want: scope.MustParse("channel:1/member.read")})
	require.NoError(t, err)
	require.Equal(t, 999, d.Left)
	require.Equal(t, grant.Operation("authztest.token"), d.Operation)
}

func TestClient(t *testing.T) {
	s := authztest.New(t, config())
	issued := s.MustEmit(mention("m1", "other.bot"))
	require.Len(t, issued, 1)
	d := s.Inbox.Next()
	require.Equal(t, "other.bot", d.App)
	require.Equal(t, issued[0].ID, d.Grant.ID)
	token, err := s.Client("other.bot").Redeem(t.Context(), d.Grant.Code)
	require.NoError(t, err)
	require.Equal(t, s.Clock.Now().Add(10*time.Minute), token.Expiry)
	_, err = s.Client("bookbot").Redeem(t.Context(), d.Grant.Code)
	require.ErrorIs(t, err, app.ErrInvalidGrant)
	require.True(t, s.Inbox.Empty())
}

// A push that fails comes again when the clock has moved.
func TestInbox(t *testing.T) {
	s := authztest.New(t, config())
	s.Inbox.Fail(2)
	s.MustEmit(mention("m1", "bookbot"))
	s.MustEmit(mention("m2", "other.bot"))
	// The clock moves until all has arrived: nobody knows from here when a try has failed.
	arrived, done := map[string]string{}, make(chan struct{})
	go func() {
		defer close(done)
		for range 2 {
			d := s.Inbox.Next()
			arrived[d.App] = d.Grant.Event.ID
		}
	}()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(time.Millisecond):
			s.Clock.Advance(100 * time.Millisecond)
			s.Wake()
		}
	}
	require.Equal(t, map[string]string{"bookbot": "m1", "other.bot": "m2"}, arrived)
	require.True(t, s.Inbox.Empty())
}

func TestClock(t *testing.T) {
	c := authztest.NewClock()
	began := c.Now()
	require.Equal(t, time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), began)
	require.Equal(t, began, c.Now())
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { c.Advance(time.Second); c.Now() })
	}
	wg.Wait()
	require.Equal(t, began.Add(64*time.Second), c.Now())
}

// A tb stands for a test that may fail.
type tb struct {
	testing.TB
	failed string
	ends   []func()
}

func (t *tb) Helper()                          {}
func (t *tb) Context() context.Context         { return context.Background() }
func (t *tb) Cleanup(f func())                 { t.ends = append(t.ends, f) }
func (t *tb) Fatal(args ...any)                { t.failed = fmt.Sprint(args...); runtime.Goexit() }
func (t *tb) Fatalf(format string, arg ...any) { t.Fatal(fmt.Sprintf(format, arg...)) }

// fails runs what must fail its test, and says how.
func fails(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	fake := &tb{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, end := range fake.ends {
				end()
			}
		}()
		f(fake)
	}()
	<-done
	require.NotEmpty(t, fake.failed, "the test went on")
	return fake.failed
}

func TestFaultsFailTheTest(t *testing.T) {
	for says, f := range map[string]func(testing.TB){
		"Prefix":            func(tb testing.TB) { c := config(); c.Prefix = "x"; authztest.New(tb, c) },
		"twice":             func(tb testing.TB) { c := config(); c.Apps[1].ID = "bookbot"; authztest.New(tb, c) },
		"an ID":             func(tb testing.TB) { c := config(); c.Apps[1].ID = "{a b}/"; authztest.New(tb, c) },
		"no app":            func(tb testing.TB) { authztest.New(tb, config()).Client("nobody") },
		"issued 0 grants":   func(tb testing.TB) { authztest.New(tb, config()).MustEmit(mention("m1", "rs")) },
		"scope":             func(tb testing.TB) { authztest.New(tb, config()).Token("bookbot", "li-si", "?") },
		"issued 0 grants: ": func(tb testing.TB) { authztest.New(tb, config()).Token("rs", "li-si", "group:42") },
		"denied": func(tb testing.TB) {
			c := config()
			c.Permit = func(context.Context, grant.Access) error { return grant.ErrDenied }
			authztest.New(tb, c).Token("bookbot", "li-si", "group:42")
		},
		"redeemed before": func(tb testing.TB) {
			s := authztest.New(tb, config())
			i := s.MustEmit(mention("m1", "bookbot"))[0]
			s.Redeem(i)
			s.Redeem(i)
		},
	} {
		require.Contains(t, fails(t, f), says)
	}
}

// The Config is the caller's: it is not changed, so one can be used for many tests.
func TestConfigIsNotChanged(t *testing.T) {
	c := config()
	for range 2 {
		authztest.New(t, c)
	}
	require.Len(t, c.Triggers, 2)
	require.True(t, c.Apps[0].Secret.IsZero())
	require.Equal(t, authztest.InboxWebhook, c.Apps[0].Webhook)
	require.Empty(t, c.Issuer)
}

// With the test everything ends, what hangs as well.
func TestEnds(t *testing.T) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	before := runtime.NumGoroutine()
	t.Run("test", func(t *testing.T) {
		s := authztest.New(t, config())
		polling := make(chan struct{})
		s.Handle("GET /hangs", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(polling)
			<-r.Context().Done()
		}))
		go func() {
			res, err := http.Get(s.URL + "/hangs")
			if err == nil {
				res.Body.Close()
			}
		}()
		go func() { _, _ = s.Client("rs").Grants(context.Background(), 30*time.Second) }()
		<-polling
		s.MustEmit(mention("m1", "bookbot"))
		s.Inbox.Next()
	})
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, 10*time.Second, time.Millisecond) // one is Eventually's
}

// A handler that acts as the user, tested without a network of one's own, a key or a clock.
func Example() {
	// In a test: func TestPostMessage(t *testing.T) { s := authztest.New(t, …)
	t, end := exampleT()
	defer end()
	s := authztest.New(t, authz.Config{Apps: []authz.App{{ID: "bookbot", Actions: []string{"message.write"}}}})
	s.Handle("POST /groups/{group}/messages", s.Require("group:{group}/message.write")(http.HandlerFunc(post)))

	token := s.Token("bookbot", "zhang-san", "group:42")
	fmt.Println(s.Do(token, "POST", "/groups/42/messages", `{"text":"Dune is reserved."}`).Body)
	fmt.Println(s.Do(token, "POST", "/groups/7/messages", `{"text":"Buy now!"}`).Reason)
	s.Clock.Advance(time.Hour)
	fmt.Println(s.Do(token, "POST", "/groups/42/messages", `{"text":"Are you there?"}`).Reason)
	// Output:
	// zhang-san via bookbot: {"text":"Dune is reserved."} application/json
	// wrong_domain
	// expired
}

// An app's own code against a real server: what is pushed to it, and what it gets for the code.
func ExampleInbox() {
	t, end := exampleT()
	defer end()
	s := authztest.New(t, authz.Config{
		Apps:     []authz.App{{ID: "bookbot", Actions: []string{"message.write"}, Webhook: authztest.InboxWebhook}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 3}},
	})
	s.MustEmit(grant.Event{ID: "message-1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot",
		Domain: scope.MustDomain("group:42"), Text: "@bookbot reserve Dune"})

	d := s.Inbox.Next()
	fmt.Println(d.App, "hears:", d.Grant.Event.Text)
	token, err := s.Client("bookbot").Redeem(context.Background(), d.Grant.Code)
	if err != nil {
		fmt.Println(err)
		return
	}
	text, _ := json.Marshal(token.Scope)
	fmt.Println("it may", strings.Trim(string(text), `"`), token.Uses, "times")
	// Output:
	// bookbot hears: @bookbot reserve Dune
	// it may group:42/message.write 3 times
}

// exampleT is a testing.TB for examples, which have none.
func exampleT() (testing.TB, func()) {
	t := &tb{}
	return t, func() {
		for i := len(t.ends) - 1; i >= 0; i-- {
			t.ends[i]()
		}
	}
}
