package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// The two apps of the demo. They are servers of their own, on ports of their own, and know of the chat what anybody's
// server would: its URL, their credentials, and what it sends them. Nothing here touches the chat but over HTTP.

// builtIn is how the chat registers the two, once their listeners have addresses.
func builtIn(bookbot, teatime net.Addr) (*apps, []hint) {
	return &apps{
		list: []authz.App{
			{ID: "bookbot", Name: "BookBot", Secret: newSecret(), Actions: []string{"message.write"}, Webhook: "http://" + bookbot.String() + "/hook"},
			{ID: "teatime", Name: "TeaTime", Secret: newSecret(), Actions: []string{"message.write", "member.read"},
				RedirectURIs: []string{teaHome(teatime) + "/tea"}},
		},
		triggers: []grant.Trigger{
			// "@bookbot …": five posts in two minutes, where it was said and nowhere else.
			{ID: "bookbot-mention", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: 2 * time.Minute, Uses: 5},
			// The button on its card: whoever presses it is who it acts for.
			{ID: "bookbot-reserve", App: "bookbot", On: grant.ButtonPress, In: "group:*", Match: grant.Match{Target: "reserve"}, Allow: []string{"message.write"}},
			// A word in a message is weak evidence, so it asks first.
			{ID: "bookbot-club", App: "bookbot", On: grant.MessagePost, In: "group:*", Match: grant.Match{Keywords: []string{"book club", "读书会"}}, Allow: []string{"message.write"}},
			// "/tea 16:00", fetched by TeaTime itself, which has no webhook.
			{ID: "teatime-command", App: "teatime", On: grant.Command, In: "group:*", Match: grant.Match{Command: "tea"}, Allow: []string{"message.write"}, For: time.Minute, Uses: 1, Deliver: grant.Poll},
			// Its links, through the browser of who opens them. Said in a thread, it still counts the members of the
			// group: At.
			{ID: "teatime-link", App: "teatime", On: grant.LinkOpen, In: "group:*", At: "group", Match: grant.Match{LinkPrefix: teaLinks}, Allow: []string{"member.read", "message.write"}, Uses: 2},
		},
	}, []hint{{"@bookbot", "@bookbot a novel with a storm in it"}, {"/tea", "/tea 16:00"}, {"book club", "When is the next book club?"}}
}

// teaLinks is how TeaTime's links begin: a name that outlasts it, for they are in messages that stay. Where a browser
// is sent that opens one is the redirect URI: of the TeaTime that runs now, beside the process that was asked.
const teaLinks = "https://teatime.example/"

// teaHome is where the browser is sent. Cookies do not know ports: another host name keeps the chat's cookie from it.
func teaHome(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return "http://localhost:" + port
}

// api is what an app says to the chat with a token.
type api struct{ client *app.Client }

func (a api) post(ctx context.Context, t *app.Token, where scope.Domain, text string, c *card) error {
	d := draft{Text: text, Card: c}
	if where.Kind() == "thread" {
		d.Thread = where.ID()
	}
	return a.call(ctx, t, http.MethodPost, where.Root(), "messages", d, nil)
}

func (a api) members(ctx context.Context, t *app.Token, where scope.Domain) (int, error) {
	var answer struct {
		Members []struct{} `json:"members"`
	}
	err := a.call(ctx, t, http.MethodGet, where.Root(), "members", nil, &answer)
	return len(answer.Members), err
}

func (a api) call(ctx context.Context, t *app.Token, method string, group scope.Domain, what string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.client.Issuer+"/api/groups/"+url.PathEscape(group.ID())+"/"+what, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req, t)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out)
}

// serve answers on the listener until ctx is done.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	var mu sync.Mutex
	silent := map[net.Conn]bool{} // those that browsers open in advance: Shutdown would wait 5 s for their first request
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnState: func(c net.Conn, state http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			if delete(silent, c); state == http.StateNew {
				silent[c] = true
			}
		}}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = l.Close() // nobody new
	<-ended
	mu.Lock()
	for c := range silent {
		_ = c.Close()
	}
	mu.Unlock()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); errors.Is(err, context.DeadlineExceeded) {
		return srv.Close()
	} else if !errors.Is(err, net.ErrClosed) { // the listener, closed above
		return err
	}
	return nil
}

// pause waits, and reports whether there is still somebody to wait for.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// BookBot knows a few books. Who mentions it asks it to look, in their name, where they are; its card has a button to
// reserve.
type bookBot struct {
	api  api
	keys []webhook.Key
	pace time.Duration // between its steps, so that one can watch, and revoke
	log  *slog.Logger
}

func (b *bookBot) run(ctx context.Context, l net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	hook := &app.Receiver{Keys: b.keys, Log: b.log, Handle: func(asked context.Context, g app.Grant) error {
		// The code is exchanged before the webhook is answered: from there on nothing can be lost. The work takes
		// longer than a server waits.
		token, err := b.api.client.Redeem(asked, g.Code)
		if errors.Is(err, app.ErrInvalidGrant) {
			b.log.Info("bookbot: too late", "grant", g.ID, "err", err)
			return nil // nothing to try again
		}
		if err != nil {
			return err
		}
		work.Go(func() {
			if err := b.work(ctx, g, token); err != nil && ctx.Err() == nil {
				b.log.Info("bookbot: stopped", "grant", g.ID, "err", err)
			}
		})
		return nil
	}}
	mux := http.NewServeMux()
	mux.Handle("/hook", hook)
	return serve(ctx, l, mux)
}

func (b *bookBot) work(ctx context.Context, g app.Grant, t *app.Token) error {
	switch g.Event.Operation {
	case "button.press":
		title := g.Event.Data["value"]
		return b.api.post(ctx, t, t.Domain, "I have reserved “"+title+"”. It waits for me at the desk until Friday.", nil)
	case "message.post":
		return b.api.post(ctx, t, t.Domain, "The next book club is on Thursday at seven, in the back room.", nil)
	}
	wish := strings.TrimSpace(strings.NewReplacer("@bookbot", "", "@BookBot", "").Replace(g.Event.Text))
	if wish == "" {
		wish = "a good book"
	}
	found := search(wish)
	lines := make([]string, len(found))
	for i, f := range found {
		lines[i] = f.title + " — " + f.author
	}
	best := found[0]
	for i, say := range []struct {
		text string
		card *card
	}{
		{"I am having the shelves searched for “" + clip(wish, 80) + "”.", nil},
		{"These are in:\n" + strings.Join(lines, "\n"), nil},
		{"This one, perhaps?", &card{Title: best.title, Text: best.author + ", " + best.year + ". " + best.about,
			Actions: []action{{Label: "Reserve", Button: "reserve", Value: best.title}}}},
	} {
		if i > 0 && !pause(ctx, b.pace) {
			return ctx.Err()
		}
		if err := b.api.post(ctx, t, t.Domain, say.text, say.card); err != nil {
			return err // revoked, left, used up: the answer says which, and there is nothing more to do
		}
	}
	return nil
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

type book struct{ title, author, year, about, words string }

var shelf = []book{
	{"The Tempest", "William Shakespeare", "1611", "A storm, an island, and an old score.", "storm weather sea island play magic"},
	{"Moby-Dick", "Herman Melville", "1851", "One whale too many.", "sea storm whale ship novel adventure"},
	{"Typhoon", "Joseph Conrad", "1902", "A steamer, a captain without imagination, and the weather.", "storm weather sea ship novel short"},
	{"Wuthering Heights", "Emily Brontë", "1847", "Wind on the moor, and in the house.", "storm weather love novel winter"},
	{"Journey to the West", "Wu Cheng’en", "1592", "A monk, a monkey, and eighty-one troubles.", "travel monkey adventure novel thick china"},
	{"Dream of the Red Chamber", "Cao Xueqin", "1791", "A great house, from its garden to its end.", "family garden love novel thick china"},
	{"Strange Tales from a Chinese Studio", "Pu Songling", "1740", "Foxes, ghosts, and officials who are worse.", "ghost short stories china fox"},
	{"Middlemarch", "George Eliot", "1871", "A town, and everybody in it.", "town love novel thick winter"},
	{"The Pillow Book", "Sei Shōnagon", "1002", "Lists of what pleases and what does not.", "court diary short japan"},
	{"Walden", "Henry David Thoreau", "1854", "A hut, a pond and a bean field.", "garden nature essay short"},
}

// search returns up to three books, those with the most words of the wish first.
func search(wish string) []book {
	wish = strings.ToLower(wish)
	var best []book
	for hits := 4; hits >= 1 && len(best) < 3; hits-- {
		for _, b := range shelf {
			n := 0
			for word := range strings.FieldsSeq(b.words) {
				if strings.Contains(wish, word) {
					n++
				}
			}
			if min(n, 4) == hits && len(best) < 3 {
				best = append(best, b)
			}
		}
	}
	if len(best) == 0 {
		return shelf[:3]
	}
	return best
}

// TeaTime fetches its grants, for it has no webhook, and takes codes from its links.
type teaTime struct {
	api api
	log *slog.Logger

	mu  sync.Mutex
	yes map[string]map[string]bool // by group, by account as TeaTime knows it
}

func (t *teaTime) run(ctx context.Context, l net.Listener) error {
	poller := &app.Poller{Client: t.api.client, Handle: t.invite, Log: t.log}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := poller.Run(ctx); err != nil && ctx.Err() == nil {
			t.log.Error("teatime: polling", "err", err)
		}
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tea", t.answer)
	mux.HandleFunc("GET /yes", t.answer) // a link that was opened and gave no grant
	mux.HandleFunc("GET /no", t.answer)
	mux.HandleFunc("GET /done", t.done)
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "static/teatime.css") })
	return serve(ctx, l, mux)
}

// invite answers "/tea 16:00" with a card.
func (t *teaTime) invite(ctx context.Context, g app.Grant) error {
	token, err := t.api.client.Redeem(ctx, g.Code)
	if errors.Is(err, app.ErrInvalidGrant) {
		return nil
	}
	if err != nil {
		return err
	}
	_, when, _ := strings.Cut(g.Event.Text, " ")
	if when = strings.TrimSpace(when); when == "" {
		when = "four o’clock"
	}
	t.mu.Lock()
	if t.yes == nil {
		t.yes = map[string]map[string]bool{}
	}
	t.yes[token.Domain.Root().String()] = map[string]bool{token.Account: true}
	t.mu.Unlock()
	err = t.api.post(ctx, token, token.Domain, "I am putting the kettle on. Who comes?", &card{Title: "Tea at " + clip(when, 40), Text: "Tell us, so that there are enough cups.",
		Actions: []action{{Label: "I am coming", Link: teaLinks + "yes"}, {Label: "Not today", Link: teaLinks + "no"}}})
	var refused *app.Error
	if errors.As(err, &refused) && refused.Status < 500 {
		t.log.Info("teatime: refused", "grant", g.ID, "err", err)
		return nil // the token is spent or void: another try could not redeem again
	}
	return err
}

// answer takes the code that came with the link. It proves who clicked and nothing else, so nobody is signed in by it.
func (t *teaTime) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	result, back := "posted", ""
	group, err := t.say(r)
	if err != nil {
		t.log.Info("teatime: link", "err", err)
		result = "refused"
		if r.URL.Query().Get("code") == "" {
			result = "empty"
		}
	} else {
		back = group.ID()
	}
	// Away from the URL that has the code.
	http.Redirect(w, r, "/done?"+url.Values{"result": {result}, "group": {back}}.Encode(), http.StatusSeeOther)
}

func (t *teaTime) say(r *http.Request) (scope.Domain, error) {
	code, err := t.api.client.Callback(r)
	if err != nil {
		return scope.Domain{}, err
	}
	token, err := t.api.client.Redeem(r.Context(), code)
	if err != nil {
		return scope.Domain{}, err
	}
	all, err := t.api.members(r.Context(), token, token.Domain)
	if err != nil {
		return scope.Domain{}, err
	}
	group, coming := token.Domain.Root(), token.Event.Target == teaLinks+"yes" // which link it was
	t.mu.Lock()
	if t.yes == nil {
		t.yes = map[string]map[string]bool{}
	}
	if t.yes[group.String()] == nil {
		t.yes[group.String()] = map[string]bool{}
	}
	t.yes[group.String()][token.Account] = coming
	n := 0
	for _, yes := range t.yes[group.String()] {
		if yes {
			n++
		}
	}
	t.mu.Unlock()
	text := fmt.Sprintf("I am coming to tea. That makes %d of %d.", n, all)
	if !coming {
		text = "No tea for me today."
	}
	return group, t.api.post(r.Context(), token, token.Domain, text, nil)
}

var doneTemplate = template.Must(template.ParseFS(files, "templates/teatime.html"))

func (t *teaTime) done(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	back := t.api.client.Issuer + "/"
	if group := r.URL.Query().Get("group"); validName(group) {
		back += "groups/" + group
	}
	err := doneTemplate.ExecuteTemplate(w, "teatime.html", map[string]string{"Result": r.URL.Query().Get("result"), "Back": back})
	if err != nil {
		t.log.Info("teatime: page", "err", err)
	}
}
