package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/store"
)

//go:embed templates/*.html static
var files embed.FS

const (
	maxBody     = 32 << 10
	cookieName  = "groupchat"
	returnTo    = "return_to" // where to go on after signing in
	sessionLife = 12 * time.Hour
	maxSessions = 10_000
)

// A site is the social server: the chat, the pages and the API, with behest in it.
type site struct {
	chat     *chat
	panel    *panel
	az       *authz.Server
	apps     *apps
	names    map[string]string // of apps, by id
	mention  map[string]string // ids of apps, by lower-case id
	hints    []hint
	issuer   string
	tea      string // where TeaTime's links lead; empty: there is no TeaTime
	now      func() time.Time
	log      *slog.Logger
	pages    *template.Template
	sessions sessions
	client   *http.Client    // for the attempts without a grant
	until    context.Context // when it is done, streams and long polls end
}

// A hint is something to try, shown under the box where one writes.
type hint struct{ Label, Text string }

// A webError is what people and apps are told. Anything else is a fault of ours: a 500, and its text goes to the log.
type webError struct {
	status int
	text   string
}

func (e *webError) Error() string { return e.text }

func problem(status int, format string, args ...any) error {
	return &webError{status, fmt.Sprintf(format, args...)}
}

var errSignIn = problem(http.StatusUnauthorized, "sign in first: POST /login with user=…")

// codes are the words for programs; the texts beside them are for people.
var codes = map[int]string{
	http.StatusBadRequest: "invalid_request", http.StatusUnauthorized: "not_signed_in", http.StatusForbidden: "forbidden",
	http.StatusNotFound: "not_found", http.StatusConflict: "conflict", http.StatusRequestEntityTooLarge: "too_large",
	http.StatusUnsupportedMediaType: "unsupported_media_type", http.StatusUnprocessableEntity: "invalid",
	http.StatusMisdirectedRequest: "misdirected", http.StatusTooManyRequests: "busy", http.StatusServiceUnavailable: "temporarily_unavailable",
}

func (s *site) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *webError
	if !errors.As(err, &e) {
		if r.Context().Err() == nil {
			s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		// All else that fails is what stands behind: the rows, or behest's store. Apps hear the same from Require.
		w.Header().Set("Retry-After", "1")
		e = &webError{http.StatusServiceUnavailable, "the server cannot do that now: try again"}
	}
	if wantsPage(r) {
		if e.status == http.StatusUnauthorized {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		s.page(w, e.status, "error.html", e.text)
		return
	}
	writeJSON(w, e.status, map[string]string{"error": codes[e.status], "error_description": e.text})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // plain structs and maps of ours: never
		status = http.StatusInternalServerError
		b.Reset()
		b.WriteString(`{"error":"server_error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // an error means that nobody is there any more
}

func (s *site) page(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
		s.log.Error("template", "name", name, "err", err)
		http.Error(w, "the server failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// wantsPage tells a browser that navigates from a program.
func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// sessions hold who is signed in, by the hash of their cookie: who reads the rows cannot be anybody by that.
type sessions struct{ rows rows }

type session struct {
	Account string    `json:"account"`
	Until   time.Time `json:"until"`
}

const inSessions = "sessions"

func sessionName(cookie string) string {
	sum := sha256.Sum256([]byte(cookie))
	return hex.EncodeToString(sum[:])
}

func (s *sessions) begin(ctx context.Context, account string, now time.Time) (string, error) {
	all, err := s.rows.list(ctx, inSessions, 0)
	if err != nil {
		return "", err
	}
	var over []string
	for i, r := range all {
		// Who signs in is not to be kept out by those who did so again and again: the oldest sessions go.
		var one session
		if r.decode(inSessions, &one) != nil || !now.Before(one.Until) || i <= len(all)-maxSessions {
			over = append(over, r.name)
		}
	}
	if err := s.rows.remove(ctx, inSessions, over...); err != nil {
		return "", err
	}
	cookie := rand.Text()
	value, err := json.Marshal(session{account, now.Add(sessionLife)})
	if err != nil {
		return "", err
	}
	_, err = s.rows.put(ctx, inSessions, row{name: sessionName(cookie), value: value})
	return cookie, err
}

func (s *sessions) account(ctx context.Context, cookie string, now time.Time) (string, bool, error) {
	var found session
	err := load(ctx, s.rows, inSessions, sessionName(cookie), &found)
	return found.Account, err == nil && now.Before(found.Until), err
}

func (s *sessions) end(ctx context.Context, cookie string) error {
	return s.rows.remove(ctx, inSessions, sessionName(cookie))
}

func (s *site) account(r *http.Request) (string, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return "", errSignIn
	}
	account, ok, err := s.sessions.account(r.Context(), cookie.Value, s.now())
	if err != nil {
		return "", err
	}
	if !ok {
		return "", errSignIn
	}
	return account, nil
}

// current is who signs in to another site.
func (s *site) current(r *http.Request) (string, error) {
	account, err := s.account(r)
	if err == errSignIn {
		return "", nil
	}
	return account, err
}

// signedIn is for routes of people.
func (s *site) signedIn(f func(w http.ResponseWriter, r *http.Request, account string) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		account, err := s.account(r)
		if err == nil {
			err = f(w, r, account)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *site) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.HandlerFunc(s.home))
	mux.Handle("POST /login", http.HandlerFunc(s.login))
	mux.Handle("POST /logout", http.HandlerFunc(s.logout))
	mux.Handle("GET /groups/{group}", s.signedIn(s.showGroup))
	mux.Handle("GET /groups/{group}/messages", s.signedIn(s.messages))
	mux.Handle("POST /groups/{group}/messages", s.signedIn(s.say))
	mux.Handle("POST /groups/{group}/messages/{message}/press", s.signedIn(s.press))
	mux.Handle("POST /groups/{group}/messages/{message}/open", s.signedIn(s.open))
	mux.Handle("POST /groups/{group}/reactions", s.signedIn(s.react))
	mux.Handle("POST /groups/{group}/join", s.signedIn(s.join))
	mux.Handle("POST /groups/{group}/leave", s.signedIn(s.leave))
	mux.Handle("POST /groups/{group}/mute", s.signedIn(s.mute))
	mux.Handle("POST /groups/{group}/try", s.signedIn(s.try))
	mux.Handle("GET /grants", s.signedIn(s.grants))
	mux.Handle("POST /grants/revoke", s.signedIn(s.revokeAll))
	mux.Handle("POST /grants/{grant}/revoke", s.signedIn(s.revoke))
	mux.Handle("POST /grants/{grant}/decide", s.signedIn(s.decide))
	mux.Handle("GET /events", s.signedIn(s.events))

	s.apiRoutes(mux)
	s.az.Routes(func(pattern string, h http.Handler) { mux.Handle(pattern, s.untilStop(pattern, h)) })

	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // embedded above
	}
	serveStatic := http.StripPrefix("/static/", http.FileServerFS(static))
	mux.HandleFunc("GET /static/", func(w http.ResponseWriter, r *http.Request) {
		if !utf8.ValidString(r.URL.Path) { // which package http calls a fault of the server
			s.fail(w, r, problem(http.StatusNotFound, "there is nothing here"))
			return
		}
		serveStatic.ServeHTTP(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem(http.StatusNotFound, "there is nothing here"))
	})

	// What a cookie can do, another site must not make a browser do. Programs send neither Origin nor Sec-Fetch-Site,
	// and pass.
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, problem(http.StatusForbidden, "refused: the request comes from another site"))
	}))
	return s.guarded(crossOrigin.Handler(mux))
}

// untilStop lets long polls end when the server stops; all else may finish.
func (s *site) untilStop(pattern string, h http.Handler) http.Handler {
	if !strings.HasPrefix(pattern, "GET ") {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := s.stoppable(r.Context())
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *site) stoppable(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.until, cancel)
	return ctx, func() { stop(); cancel() }
}

// guarded sets what holds for every answer.
func (s *site) guarded(next http.Handler) http.Handler {
	// A form that ends in a redirect to an app needs the app's origin here: browsers check the whole way.
	forms := []string{"'self'"}
	for _, a := range s.apps.list {
		for _, uri := range a.RedirectURIs {
			if u, err := url.Parse(uri); err == nil && !slices.Contains(forms, u.Scheme+"://"+u.Host) {
				forms = append(forms, u.Scheme+"://"+u.Host)
			}
		}
	}
	policy := "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action " + strings.Join(forms, " ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		// Another name that leads to this machine is some other site's trick (DNS rebinding).
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if !isLoopback(strings.Trim(host, "[]")) {
			s.fail(w, r, problem(http.StatusMisdirectedRequest, "this server is %s", s.issuer))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// read takes a body as JSON into v, strictly, or as a form.
func read(w http.ResponseWriter, r *http.Request, v any, form func(url.Values)) error {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" && (media != "application/x-www-form-urlencoded" || form == nil) {
		return problem(http.StatusUnsupportedMediaType, "the Content-Type must be application/json%s",
			map[bool]string{true: " or application/x-www-form-urlencoded"}[form != nil])
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return fmt.Errorf("%w: %w", problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody), err)
		}
		return problem(http.StatusBadRequest, "the body could not be read")
	}
	if !utf8.Valid(body) {
		return problem(http.StatusBadRequest, "the body is not UTF-8")
	}
	if media == "application/json" {
		return decode(body, v)
	}
	values, err := url.ParseQuery(string(body))
	if err != nil || !utf8.ValidString(fmt.Sprint(values)) {
		return problem(http.StatusBadRequest, "the form is malformed")
	}
	form(values)
	return nil
}

func decode(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return problem(http.StatusBadRequest, "the JSON's field %q is a %s", wrong.Field, wrong.Value)
	case err != nil:
		return problem(http.StatusBadRequest, "the JSON is malformed: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); err != io.EOF {
		return problem(http.StatusBadRequest, "there is text after the JSON")
	}
	return nil
}

func (s *site) home(w http.ResponseWriter, r *http.Request) {
	account, err := s.account(r)
	if err == errSignIn {
		s.page(w, http.StatusOK, "login.html", struct {
			Users    []user
			ReturnTo string
		}{s.chat.users, r.URL.Query().Get(returnTo)})
		return
	}
	var views []groupView
	if err == nil {
		views, err = s.chat.views(r.Context(), account)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	at := slices.IndexFunc(views, func(v groupView) bool { return v.Member })
	http.Redirect(w, r, "/groups/"+views[max(at, 0)].ID, http.StatusSeeOther)
}

func (s *site) login(w http.ResponseWriter, r *http.Request) {
	var in struct {
		User     string `json:"user"`
		ReturnTo string `json:"return_to"`
	}
	err := read(w, r, &in, func(v url.Values) { in.User, in.ReturnTo = v.Get("user"), v.Get(returnTo) })
	if err == nil {
		if _, ok := s.chat.user(in.User); !ok {
			err = problem(http.StatusUnprocessableEntity, "no such user")
		}
	}
	cookie := ""
	if err == nil {
		cookie, err = s.sessions.begin(r.Context(), in.User, s.now())
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(sessionLife / time.Second)})
	back := "/"
	// The only page that sends people here; any URL would be another site's trick, and no header has a control character.
	if strings.HasPrefix(in.ReturnTo, "/oauth2/authorize?") && !strings.ContainsFunc(in.ReturnTo, unicode.IsControl) {
		back = in.ReturnTo
	}
	http.Redirect(w, r, back, http.StatusSeeOther)
}

func (s *site) logout(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := s.sessions.end(r.Context(), cookie.Value); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// done answers a program with JSON and a browser with the way back.
func (s *site) done(w http.ResponseWriter, r *http.Request, status int, v any) error {
	if wantsPage(r) {
		back := "/"
		if id := r.PathValue("group"); validName(id) {
			back = "/groups/" + id
		}
		if t := r.URL.Query().Get("thread"); validName(t) {
			back += "?thread=" + t
		}
		http.Redirect(w, r, back, http.StatusSeeOther)
		return nil
	}
	writeJSON(w, status, v)
	return nil
}

func (s *site) messages(w http.ResponseWriter, r *http.Request, account string) error {
	list, err := s.chat.list(r.Context(), account, r.PathValue("group"), r.URL.Query().Get("thread"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"messages": list})
	return nil
}

// say is where a user's message is saved, and so where behest hears of it.
func (s *site) say(w http.ResponseWriter, r *http.Request, account string) error {
	if _, _, err := s.chat.member(r.Context(), r.PathValue("group"), account); err != nil {
		return err // before the body is judged
	}
	var in struct {
		Text   string `json:"text"`
		Thread string `json:"thread"`
	}
	if err := read(w, r, &in, func(v url.Values) { in.Text, in.Thread = v.Get("text"), v.Get("thread") }); err != nil {
		return err
	}
	var m message
	err := s.together(r.Context(), func(ctx context.Context, az *authz.Server) (err error) {
		if m, err = s.chat.post(ctx, account, "", r.PathValue("group"), draft{Text: in.Text, Thread: in.Thread}); err != nil {
			return err
		}
		_, err = s.emit(ctx, az, s.eventsOf(m)...)
		return err
	})
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusCreated, m)
}

// together is for what the chat writes and behest is told of. Where both are in one database they are committed
// together or not at all: no message without its grants, no grant of a message that is not there. Deliveries begin
// after the commit.
func (s *site) together(ctx context.Context, f func(context.Context, *authz.Server) error) error {
	err := s.chat.rows.together(ctx, func(ctx context.Context, st store.Store) error {
		if st == nil {
			return f(ctx, s.az)
		}
		return f(ctx, s.az.In(st))
	})
	if err != nil {
		return err
	}
	s.az.Wake()
	s.panel.wakeAll()
	return nil
}

// eventsOf are the operations that a message is: posting it, the apps that it mentions, the command that it is.
func (s *site) eventsOf(m message) []grant.Event {
	at := grant.Event{ID: m.ID, Operation: grant.MessagePost, Account: m.Account, Domain: m.domain(), Text: m.Text, At: m.At}
	out := []grant.Event{at}
	for i, app := range mentions(m.Text, s.mention) {
		ev := at
		ev.Operation, ev.App = grant.Mention, app
		if i > 0 {
			ev.ID += "@" + app // each mention is an operation of its own
		}
		out = append(out, ev)
	}
	if word := command(m.Text); word != "" {
		ev := at
		ev.Operation, ev.Target = grant.Command, word
		out = append(out, ev)
	}
	return out
}

// emit tells behest what somebody did, az being that of together, or s.az where the chat has nothing to write. What a
// trigger makes of it is not the poster's trouble: refusals go to the log and the panel. An error is a fault of ours,
// after which a transaction must not be committed.
func (s *site) emit(ctx context.Context, az *authz.Server, events ...grant.Event) ([]authz.Issued, error) {
	issued, err := az.Emit(ctx, events...)
	by := ""
	if d, ok := authz.FromContext(ctx); ok {
		by = s.names[d.App]
	}
	s.panel.happened(events, by, len(issued), err)
	switch {
	case err == nil:
	case refusals(err):
		s.log.Debug("emit", "event", events[0].ID, "err", err)
	case az != s.az:
		return nil, err
	default:
		s.log.Warn("emit", "event", events[0].ID, "err", err) // what the chat wrote is written
	}
	return issued, nil
}

// refusals reports whether err is nothing but refusals, and faults of events.
func refusals(err error) bool {
	if errs, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range errs.Unwrap() {
			switch {
			case err == grant.ErrDenied, err == grant.ErrLimited, err == grant.ErrInvalid:
				return true // with its cause beside it
			case !refusals(err):
				return false
			}
		}
		return true
	}
	if one := errors.Unwrap(err); one != nil {
		return refusals(one)
	}
	return err == grant.ErrDenied || err == grant.ErrLimited || err == grant.ErrInvalid
}

func (s *site) press(w http.ResponseWriter, r *http.Request, account string) error {
	var in struct {
		Button string `json:"button"`
		Value  string `json:"value"`
	}
	m, err := s.chat.find(r.Context(), account, r.PathValue("group"), r.PathValue("message"))
	if err != nil {
		return err
	}
	if err := read(w, r, &in, func(v url.Values) { in.Button, in.Value = v.Get("button"), v.Get("value") }); err != nil {
		return err
	}
	if in.Button == "" || m.Card == nil || m.Via == "" || !slices.ContainsFunc(m.Card.Actions, func(a action) bool { return a.Button == in.Button && a.Value == in.Value }) {
		return problem(http.StatusNotFound, "the message has no such button")
	}
	id, err := s.chat.newID(r.Context(), "press")
	if err != nil {
		return err
	}
	ev := grant.Event{ID: id, Operation: grant.ButtonPress, Account: account, Domain: m.domain(), App: m.Via,
		Text: m.Card.Title, Target: in.Button, Data: map[string]string{"message": m.ID, "value": in.Value}}
	issued, err := s.emit(r.Context(), s.az, ev)
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusAccepted, operation(ev, issued))
}

// operation is the answer to an operation that is no message.
func operation(ev grant.Event, issued []authz.Issued) map[string]any {
	return map[string]any{"id": ev.ID, "operation": ev.Operation, "grants": len(issued)}
}

// open leads through an app's link. It is a POST, so that no prefetch and no other site can do it; the answer is the
// redirect, with the code if a trigger made one.
func (s *site) open(w http.ResponseWriter, r *http.Request, account string) error {
	var in struct {
		Link string `json:"link"`
	}
	m, err := s.chat.find(r.Context(), account, r.PathValue("group"), r.PathValue("message"))
	if err != nil {
		return err
	}
	if err := read(w, r, &in, func(v url.Values) { in.Link = v.Get("link") }); err != nil {
		return err
	}
	if !slices.Contains(m.links(), in.Link) {
		return problem(http.StatusNotFound, "the message has no such link")
	}
	id, err := s.chat.newID(r.Context(), "open")
	if err != nil {
		return err
	}
	ev := grant.Event{ID: id, Operation: grant.LinkOpen, Account: account, Domain: m.domain(), Target: in.Link,
		Data: map[string]string{"message": m.ID}}
	issued, err := s.emit(r.Context(), s.az, ev)
	if err != nil {
		return err
	}
	to := in.Link
	if rest, ok := strings.CutPrefix(to, teaLinks); ok && s.tea != "" { // where that name leads on this machine
		to = s.tea + rest
	}
	for _, i := range issued {
		if link := i.Link(); link != "" {
			to = link
			break
		}
	}
	w.Header().Set("Location", to)
	w.Header().Set("Cache-Control", "no-store") // it may hold a code
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

var linkPattern = regexp.MustCompile(`https?://[^\s<>"]+`)

// links are those of the card and of the text.
func (m *message) links() []string {
	var out []string
	if m.Card != nil {
		for _, a := range m.Card.Actions {
			if a.Link != "" {
				out = append(out, a.Link)
			}
		}
	}
	for _, link := range linkPattern.FindAllString(m.Text, 20) {
		if link = strings.TrimRight(link, ".,;:!?)'"); webLink(link) {
			out = append(out, link)
		}
	}
	return out
}

func (s *site) react(w http.ResponseWriter, r *http.Request, account string) error {
	var in struct {
		Message string `json:"message"`
		Emoji   string `json:"emoji"`
	}
	if err := read(w, r, &in, func(v url.Values) { in.Message, in.Emoji = v.Get("message"), v.Get("emoji") }); err != nil {
		return err
	}
	m, err := s.reacted(r.Context(), account, r.PathValue("group"), in.Message, in.Emoji)
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusCreated, m)
}

// reacted is what people do and apps do for them.
func (s *site) reacted(ctx context.Context, account, group, id, emoji string) (m message, err error) {
	err = s.together(ctx, func(ctx context.Context, az *authz.Server) error {
		event, err := s.chat.newID(ctx, "react")
		if err != nil {
			return err
		}
		var added bool
		if m, added, err = s.chat.react(ctx, account, group, id, emoji); err != nil || !added {
			return err
		}
		_, err = s.emit(ctx, az, grant.Event{ID: event, Operation: grant.ReactionAdd, Account: account, Domain: m.domain(), Target: emoji,
			Text: m.Text, Data: map[string]string{"message": m.ID}})
		return err
	})
	return m, err
}

func (s *site) join(w http.ResponseWriter, r *http.Request, account string) error {
	id := r.PathValue("group")
	err := s.together(r.Context(), func(ctx context.Context, az *authz.Server) error {
		event, err := s.chat.newID(ctx, "join")
		if err != nil {
			return err
		}
		if joined, err := s.chat.join(ctx, account, id); err != nil || !joined {
			return err
		}
		_, err = s.emit(ctx, az, grant.Event{ID: event, Operation: grant.MemberJoin, Account: account, Domain: domainOf(id, "")})
		return err
	})
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusOK, map[string]any{"group": id, "member": true})
}

// leave needs no word to behest: the next use of any token asks Permit, which asks the group.
func (s *site) leave(w http.ResponseWriter, r *http.Request, account string) error {
	id := r.PathValue("group")
	if err := s.chat.leave(r.Context(), account, id); err != nil {
		return err
	}
	s.panel.wakeAll()
	return s.done(w, r, http.StatusOK, map[string]any{"group": id, "member": false})
}

func (s *site) mute(w http.ResponseWriter, r *http.Request, account string) error {
	var in struct {
		User  string `json:"user"`
		Muted bool   `json:"muted"`
	}
	err := read(w, r, &in, func(v url.Values) { in.User, in.Muted = v.Get("user"), v.Get("muted") == "true" })
	if err == nil {
		err = s.chat.mute(r.Context(), account, r.PathValue("group"), in.User, in.Muted)
	}
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusOK, map[string]any{"user": in.User, "muted": in.Muted})
}

func (s *site) revoke(w http.ResponseWriter, r *http.Request, account string) error {
	id := r.PathValue("grant")
	err := s.az.Engine().Revoke(r.Context(), account, id)
	if errors.Is(err, grant.ErrUnknown) {
		return problem(http.StatusNotFound, "you have no such grant")
	}
	if err != nil {
		return err
	}
	return s.done(w, r, http.StatusOK, map[string]any{"id": id, "state": "revoked"})
}

func (s *site) revokeAll(w http.ResponseWriter, r *http.Request, account string) error {
	if err := s.az.Engine().RevokeAccount(r.Context(), account); err != nil {
		return err
	}
	return s.done(w, r, http.StatusOK, map[string]any{"account": account, "state": "revoked"})
}

func (s *site) decide(w http.ResponseWriter, r *http.Request, account string) error {
	var in struct {
		Allow bool `json:"allow"`
	}
	if err := read(w, r, &in, func(v url.Values) { in.Allow = v.Get("allow") == "true" }); err != nil {
		return err
	}
	issued, err := s.az.Decide(r.Context(), account, r.PathValue("grant"), in.Allow)
	switch {
	case errors.Is(err, grant.ErrUnknown):
		return problem(http.StatusNotFound, "you have no such grant")
	case errors.Is(err, grant.ErrInvalid), errors.Is(err, grant.ErrExpired), errors.Is(err, grant.ErrRevoked):
		return problem(http.StatusConflict, "the grant waits for no decision")
	case err != nil:
		return err
	}
	if link := issued.Link(); link != "" && wantsPage(r) { // it asks for the way through this client
		w.Header().Set("Location", link)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	return s.done(w, r, http.StatusOK, map[string]any{"id": issued.ID, "state": issued.State})
}

// An attempt is what an app without a grant gets to see.
type attempt struct {
	With      string `json:"with"`
	Request   string `json:"request"`
	Status    int    `json:"status"`
	Challenge string `json:"www_authenticate"`
	Body      string `json:"body"`
}

// try posts as an app would that has no grant: over HTTP, to the same route, in three ways.
func (s *site) try(w http.ResponseWriter, r *http.Request, account string) error {
	id := r.PathValue("group")
	if _, _, err := s.chat.member(r.Context(), id, account); err != nil {
		return err
	}
	tries := []struct{ with, authorization string }{
		{"no token", ""},
		{"a token that the app made up", "Bearer bhst_" + rand.Text() + rand.Text()},
	}
	if own, err := s.ownToken(r.Context()); err == nil {
		tries = append(tries, struct{ with, authorization string }{"the app’s own OAuth token (client_credentials)", "Bearer " + own})
	}
	out := []attempt{}
	for _, t := range tries {
		path := "/api/groups/" + id + "/messages"
		req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, s.issuer+path, strings.NewReader(`{"text":"I was never asked."}`))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		if t.authorization != "" {
			req.Header.Set("Authorization", t.authorization)
		}
		answer, err := s.client.Do(req)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
		_ = answer.Body.Close()
		if err != nil {
			return err
		}
		out = append(out, attempt{t.with, "POST " + path, answer.StatusCode, answer.Header.Get("WWW-Authenticate"), strings.TrimSpace(string(body))})
	}
	writeJSON(w, http.StatusOK, map[string]any{"attempts": out})
	return nil
}

// ownToken is what plain OAuth gives the first app: a token that stands for the app, and for no user.
func (s *site) ownToken(ctx context.Context) (string, error) {
	at := slices.IndexFunc(s.apps.list, func(a authz.App) bool { return len(a.Actions) > 0 })
	if at < 0 {
		return "", errors.New("no app")
	}
	app := s.apps.list[at]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.issuer+"/oauth2/token", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(app.ID), url.QueryEscape(app.Secret.Reveal()))
	answer, err := s.client.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 64<<10)).Decode(&token); err != nil {
		return "", err
	}
	if token.AccessToken == "" {
		return "", fmt.Errorf("status %d", answer.StatusCode)
	}
	return token.AccessToken, nil
}

// The page of a group, or of a thread in it.
type groupPage struct {
	Me       user
	Groups   []groupView
	Group    groupView
	Thread   thread
	Members  []member
	Owner    bool // I am the group's
	Messages []messageView
	Stories  []story
	Hints    []hint
	Rev      int64
	Muted    bool
}

func (s *site) showGroup(w http.ResponseWriter, r *http.Request, account string) error {
	p := groupPage{Hints: s.hints}
	p.Me, _ = s.chat.user(account)
	var err error
	if p.Rev, err = s.chat.rows.rev(r.Context()); err != nil { // before all else: what comes later, the stream tells
		return err
	}
	if p.Groups, err = s.chat.views(r.Context(), account); err != nil {
		return err
	}
	at := slices.IndexFunc(p.Groups, func(v groupView) bool { return v.ID == r.PathValue("group") })
	if at < 0 {
		return errNoGroup
	}
	p.Group = p.Groups[at]
	if p.Stories, err = s.latest(r.Context(), account); err != nil {
		return err
	}
	if !p.Group.Member {
		if !wantsPage(r) {
			return errNoMember
		}
		s.page(w, http.StatusForbidden, "group.html", p)
		return nil
	}
	if id := r.URL.Query().Get("thread"); id != "" {
		at := slices.IndexFunc(p.Group.Threads, func(t thread) bool { return t.ID == id })
		if at < 0 {
			return problem(http.StatusNotFound, "no such thread")
		}
		p.Thread = p.Group.Threads[at]
	}
	if p.Members, err = s.chat.members(r.Context(), account, p.Group.ID); err != nil {
		return err
	}
	for _, m := range p.Members {
		if m.ID == account {
			p.Owner, p.Muted = m.Owner, m.Muted
		}
	}
	list, err := s.chat.list(r.Context(), account, p.Group.ID, p.Thread.ID)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Thread == p.Thread.ID {
			p.Messages = append(p.Messages, s.view(m, account))
		}
	}
	s.page(w, http.StatusOK, "group.html", p)
	return nil
}

// A messageView is a message ready for the template.
type messageView struct {
	message
	User  user
	App   string // the name of the app that posted it
	Mine  bool
	Parts []part
	Group string
	Acts  []actionView
}

type actionView struct {
	action
	AppLink bool
}

// A part of a text is plain, or a "mention", a "link" or an "applink".
type part struct{ Kind, Text string }

func (s *site) view(m message, account string) messageView {
	v := messageView{message: m, App: s.names[m.Via], Mine: m.Account == account, Group: m.group, Parts: s.parts(&m)}
	v.User, _ = s.chat.user(m.Account)
	if m.Card != nil {
		for _, a := range m.Card.Actions {
			v.Acts = append(v.Acts, actionView{a, a.Link != "" && s.appLink(a.Link)})
		}
	}
	return v
}

// appLink reports whether some trigger waits for this link to be opened.
func (s *site) appLink(link string) bool {
	return slices.ContainsFunc(s.apps.triggers, func(t grant.Trigger) bool {
		return t.On == grant.LinkOpen && (t.Match.LinkPrefix == "" || strings.HasPrefix(link, t.Match.LinkPrefix)) && (t.Match.Target == "" || t.Match.Target == link)
	})
}

var partPattern = regexp.MustCompile(linkPattern.String() + `|@[A-Za-z0-9._-]+`)

func (s *site) parts(m *message) []part {
	var out []part
	rest := m.Text
	for rest != "" {
		at := partPattern.FindStringIndex(rest)
		if at == nil {
			break
		}
		word, kind := rest[at[0]:at[1]], "mention"
		if word[0] != '@' {
			word, kind = strings.TrimRight(word, ".,;:!?)'"), "link"
			if s.appLink(word) {
				kind = "applink"
			}
			if !webLink(word) {
				kind = ""
			}
		} else if found := mentions(word, s.mention); len(found) == 0 || at[0] > 0 && wordByte(rest[at[0]-1]) {
			kind = ""
		}
		if at[0] > 0 {
			out = append(out, part{"", rest[:at[0]]})
		}
		out = append(out, part{kind, word})
		rest = rest[at[0]+len(word):]
	}
	if rest != "" {
		out = append(out, part{"", rest})
	}
	return out
}

// permit is behest's question, at issue and at each use: may this account itself do this here, now?
// An answer that could not be had is no "no": the app is told to come again (503), and nothing is spent. Asked within
// a transaction, it sees what that has written.
func (s *site) permit(ctx context.Context, a grant.Access) error {
	err := s.chat.may(ctx, a.Account, a.Scope.Action(), a.Scope.Domain())
	if no := (*webError)(nil); errors.As(err, &no) {
		return fmt.Errorf("%w: %s", grant.ErrDenied, no)
	}
	return err
}
