// Groupchat is a small social server with two apps that act for its users, to click through or to drive with curl:
// see README.md.
//
// The server is in main.go (starting and stopping), stores.go (what lasts), chat.go (its own data, kept by rows.go,
// rows_sql.go or rows_redis.go), web.go (what people do), api.go (what apps do, behind behest), panel.go (what one sees
// of it) and config.go (files). The apps, in apps.go, are servers of their own that only speak HTTP.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/authz/app"
	"github.com/behest-go/behest/authz/webhook"
)

func main() {
	redis.SetLogger(quiet{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var wrong *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "groupchat:", oneLine(err))
		os.Exit(1)
	}
}

// A usageError lies in the flags or in the file of -apps: exit status 2.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// options are the flags, and what only tests set.
type options struct {
	addr, apps, info      string
	store, data, dsn, key string
	now                   func() time.Time
	pace                  time.Duration // of BookBot
	seed                  bool          // the groups have a past
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o := options{now: time.Now, pace: 1500 * time.Millisecond}
	fs := flag.NewFlagSet("groupchat", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.addr, "addr", "127.0.0.1:8080", "where to listen: a loopback address, since nobody needs a password; port 0 takes a free one")
	fs.StringVar(&o.apps, "apps", "", "a JSON `file` with apps and triggers instead of the built-in ones")
	fs.StringVar(&o.store, "store", "sqlite", "where all is kept: memory, sqlite, postgres or redis")
	fs.StringVar(&o.data, "data", "", "the `directory` of -store sqlite, made if it is not there; without it a temporary one, removed at the end")
	fs.StringVar(&o.dsn, "dsn", "", "the `database` of -store postgres (postgres://user@host/db) or redis (redis://host:6379/0); many processes may share it")
	fs.StringVar(&o.key, "key", "", "the `file` of the server's key, made if it is not there; without it DIR/key of -data, or else (unsafe) in the database")
	fs.StringVar(&o.info, "info", "", "write what is needed to drive the server, secrets too, to this JSON `file`")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return &usageError{errors.New("groupchat: see -help")} // the flag set has said what was wrong
	}
	if fs.NArg() > 0 {
		return &usageError{fmt.Errorf("groupchat: unexpected argument %q", fs.Arg(0))}
	}
	var empty error // a variable of the shell that is not set, most likely
	fs.Visit(func(f *flag.Flag) {
		if f.Value.String() == "" {
			empty = &usageError{fmt.Errorf("groupchat: -%s is empty", f.Name)}
		}
	})
	if empty != nil {
		return empty
	}
	if err := o.checkStore(); err != nil {
		return &usageError{fmt.Errorf("groupchat: %w", err)}
	}
	o.seed = o.apps == ""
	return o.run(ctx, stdout, stderr)
}

func (o options) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	host, portText, err := net.SplitHostPort(o.addr)
	if _, wrong := strconv.ParseUint(portText, 10, 16); err != nil || wrong != nil || !isLoopback(host) {
		return &usageError{fmt.Errorf("groupchat: -addr %q is not a loopback address with a port, such as 127.0.0.1:8080", o.addr)}
	}
	var configured *apps
	if o.apps != "" {
		if configured, err = readApps(o.apps); err != nil {
			return &usageError{err}
		}
	}

	// The first that fails, or the signal, ends all.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil) // before waiting
	start := func(name string, f func() error) {
		running.Go(func() {
			if err := f(); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}

	var listeners [3]net.Listener // the chat's and, on ports of their own, the built-in apps'
	for i := range listeners {
		if i > 0 && configured != nil {
			break
		}
		if listeners[i], err = net.Listen("tcp", [...]string{o.addr, "127.0.0.1:0", "127.0.0.1:0"}[i]); err != nil {
			return err
		}
		defer listeners[i].Close()
	}
	l := listeners[0]
	issuer := "http://" + l.Addr().String()

	temporary := o.store == "sqlite" && o.data == ""
	if temporary {
		if o.data, err = os.MkdirTemp("", "groupchat-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.data)) }()
	}
	kept, err := o.open(ctx, log)
	defer func() { // when nothing runs any more
		cancel(nil)
		running.Wait()
		err = errors.Join(err, kept.Close())
	}()
	if err != nil {
		return err
	}
	if kept.inside {
		log.Warn("the server's key is kept in the database: who reads that can act as any user; -key FILE keeps it elsewhere")
	}
	s := &site{issuer: issuer, apps: configured, panel: newPanel(), now: o.now, log: log, until: ctx,
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	s.chat, s.sessions = newChat(o.now, kept.rows), sessions{kept.rows}
	if o.seed {
		if err := s.chat.seed(ctx); err != nil {
			return err
		}
	}
	if configured == nil {
		s.apps, s.hints = builtIn(listeners[1].Addr(), listeners[2].Addr())
		s.tea = teaHome(listeners[2].Addr()) + "/"
	}
	resourceServer := s.apps.withResourceServer()
	if err := s.assemble(o, kept, log); err != nil {
		return err
	}
	if o.info != "" {
		about, err := infoOf(ctx, s.chat, s.apps, resourceServer, s.az)
		if err == nil {
			err = writeInfo(o.info, about)
		}
		if err != nil {
			return err
		}
	}
	if configured == nil {
		if err := s.startApps(ctx, o, log, start, listeners[1], listeners[2]); err != nil {
			return err
		}
	}

	// Deliveries go on until the last request has been answered.
	delivering, stopDelivering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDelivering()
	start("deliveries", func() error { return s.az.Run(delivering) })
	start("server", func() error {
		defer stopDelivering()
		return serve(ctx, l, s.handler())
	})
	ready := fmt.Sprintf("listening on %s\n", issuer)
	if temporary {
		ready += fmt.Sprintf("all data is in %s, which is removed at the end: -data DIR keeps it\n", o.data)
	}
	if _, err := io.WriteString(stdout, ready); err != nil {
		return err
	}
	<-ctx.Done()
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// assemble makes what the apps and the flags decide about.
func (s *site) assemble(o options, kept *storage, log *slog.Logger) (err error) {
	s.names, s.mention = map[string]string{}, map[string]string{}
	for _, a := range s.apps.list {
		if s.names[a.ID] = a.Name; a.Name == "" {
			s.names[a.ID] = a.ID
		}
		s.mention[strings.ToLower(a.ID)] = a.ID
	}
	if s.pages, err = parsePages(s); err != nil {
		return err
	}
	s.az, err = authz.New(authz.Config{
		Issuer: s.issuer, Permit: s.permit, Account: s.current, LoginURL: "/",
		Apps: s.apps.list, Triggers: s.apps.triggers, JWTAudience: s.apps.audience,
		Store: kept.store, Waker: kept.waker, Key: kept.key, InsecureKeyInStore: kept.inside,
		Observe: s.panel.observe, AllowWebhooksTo: loopbackHosts(s.apps.list), Now: o.now, Log: log,
	})
	return err
}

// startApps gives the built-in apps what a developer is given who registers an app, and starts them.
func (s *site) startApps(ctx context.Context, o options, log *slog.Logger, start func(string, func() error), books, tea net.Listener) error {
	client := func(i int) api {
		a := s.apps.list[i]
		return api{&app.Client{Issuer: s.issuer, ID: a.ID, Secret: app.NewSecret(a.Secret.Reveal())}}
	}
	key, err := webhook.ParseKey(s.az.WebhookKey("bookbot"))
	if err != nil {
		return err
	}
	bookbot := &bookBot{api: client(0), keys: []webhook.Key{key}, pace: o.pace, log: log}
	teatime := &teaTime{api: client(1), log: log}
	start("bookbot", func() error { return bookbot.run(ctx, books) })
	start("teatime", func() error { return teatime.run(ctx, tea) })
	return nil
}

func parsePages(s *site) (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"clock":   func(t time.Time) string { return t.Local().Format("15:04") },
		"seconds": func(t time.Time) string { return t.Local().Format("15:04:05") },
		"iso":     func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"app":     func(id string) string { return s.names[id] },
		"initial": func(name string) string { return strings.ToUpper(string([]rune(name + "?")[:1])) },
		"join":    strings.Join,
		"state":   stateWords,
		"reason":  reasonWords,
		"span":    spanWords,
	}).ParseFS(files, "templates/*.html")
}

// stateWords are for people.
func stateWords(state string) string {
	switch state {
	case "pending":
		return "asks you"
	case "denied":
		return "you said no"
	case "issued":
		return "code waits"
	case "redeemed":
		return "may act"
	case "used_up":
		return "used up"
	}
	return state
}

// spanWords shortens "2m0s" to "2 min".
func spanWords(text string) string {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return text
	case d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

func reasonWords(reason string) string {
	switch reason {
	case "expired":
		return "its time is over"
	case "used_up":
		return "no uses left"
	case "revoked":
		return "it was revoked"
	case "wrong_domain":
		return "not granted there"
	case "wrong_action":
		return "not granted for that"
	case "rights_changed":
		return "you may not do it yourself any more"
	case "unknown":
		return "a code in the wrong hands"
	}
	return reason
}
