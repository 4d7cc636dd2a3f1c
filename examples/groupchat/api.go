package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"time"

	"github.com/behest-go/behest/authz"
	"github.com/behest-go/behest/scope"
)

// apiRoutes are the routes for apps. Each stands behind Require: without a delegation token there is no way in, and
// what it was given for decides the rest.
func (s *site) apiRoutes(mux *http.ServeMux) {
	// What is read or written may lie in a thread, and only the request's body, its query or the message itself tell
	// in which: RequireFunc. A token that was granted in a thread goes no further; one that was granted in the group
	// goes into its threads as well.
	mux.Handle("POST /api/groups/{group}/messages", s.carrying(s.az.RequireFunc(s.posting)(lasting(s.apiPost))))
	mux.Handle("GET /api/groups/{group}/messages", s.az.RequireFunc(s.reading)(http.HandlerFunc(s.apiMessages)))
	mux.Handle("POST /api/groups/{group}/reactions", s.carrying(s.az.RequireFunc(s.reacting)(lasting(s.apiReact))))
	// Members are the group's: the path says it all.
	mux.Handle("GET /api/groups/{group}/members", s.az.Require("group:{group}/member.read")(http.HandlerFunc(s.apiMembers)))
}

// A carried request's body is read once, by who resolves the domain, and handed on: nobody reads it a second time in
// another way.
type carried struct {
	w        http.ResponseWriter
	draft    draft
	reaction struct {
		Message string `json:"message"`
		Emoji   string `json:"emoji"`
	}
}

type carriedKey struct{}

func (s *site) carrying(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Header.Get("Authorization") != "" && (err != nil || media != "application/json") {
			s.fail(w, r, problem(http.StatusUnsupportedMediaType, "the Content-Type must be application/json"))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), carriedKey{}, &carried{w: w})))
	})
}

// lasting lets a handler end what it has begun, also when the app's connection is lost: the use is spent by then, and
// the app asks again, with the same Idempotency-Key, for the answer.
func lasting(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 30*time.Second)
		defer cancel()
		next(w, r.WithContext(ctx))
	})
}

// malformed is a request that spends nothing.
func malformed(err error) error { return fmt.Errorf("%w: %w", authz.ErrInvalidRequest, err) }

func wanted(domain scope.Domain, action string) (scope.Scope, error) {
	if domain.IsZero() {
		return scope.Scope{}, fs.ErrNotExist
	}
	return scope.New(domain, action)
}

// posting is asked only about tokens that this server made, so that strangers cannot make it read bodies.
func (s *site) posting(r *http.Request) (scope.Scope, error) {
	c := r.Context().Value(carriedKey{}).(*carried)
	if err := read(c.w, r, &c.draft, nil); err != nil {
		return scope.Scope{}, malformed(err)
	}
	if err := c.draft.check(); err != nil {
		return scope.Scope{}, malformed(err)
	}
	return wanted(domainOf(r.PathValue("group"), c.draft.Thread), "message.write")
}

func (s *site) apiPost(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	c := r.Context().Value(carriedKey{}).(*carried)
	// In the delegation's account and domain, and with its app's name, which the app cannot take off.
	var m message
	err := s.together(r.Context(), func(ctx context.Context, az *authz.Server) (err error) {
		if m, err = s.chat.post(ctx, d.Account, d.App, d.Domain.Root().ID(), c.draft); err != nil {
			return err
		}
		_, err = s.emit(ctx, az, s.eventsOf(m)...) // by the delegation, as the context knows: it triggers nothing
		return err
	})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusCreated, s.forApp(d.App, m))
}

// forApp gives the accounts the names that the app knows them by.
func (s *site) forApp(app string, m message) message {
	m.Account = s.az.Engine().Name(app, m.Account)
	for i := range m.Reactions {
		for j, account := range m.Reactions[i].Accounts {
			m.Reactions[i].Accounts[j] = s.az.Engine().Name(app, account)
		}
	}
	return m
}

func (s *site) reading(r *http.Request) (scope.Scope, error) {
	thread := r.URL.Query().Get("thread")
	if thread != "" && !validName(thread) {
		return scope.Scope{}, malformed(errors.New("thread"))
	}
	return wanted(domainOf(r.PathValue("group"), thread), "message.read")
}

func (s *site) apiMessages(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	thread := ""
	if d.Domain.Kind() == "thread" {
		thread = d.Domain.ID()
	}
	list, err := s.chat.list(r.Context(), d.Account, d.Domain.Root().ID(), thread)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	for i := range list {
		list[i] = s.forApp(d.App, list[i])
	}
	writeJSON(w, http.StatusOK, map[string]any{"messages": list})
}

func (s *site) apiMembers(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	list, err := s.chat.members(r.Context(), d.Account, d.Domain.ID())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	type member struct {
		Account string `json:"account"`
	}
	out := []member{}
	for _, m := range list {
		out = append(out, member{s.az.Engine().Name(d.App, m.ID)})
	}
	writeJSON(w, http.StatusOK, map[string]any{"members": out})
}

func (s *site) reacting(r *http.Request) (scope.Scope, error) {
	c := r.Context().Value(carriedKey{}).(*carried)
	if err := read(c.w, r, &c.reaction, nil); err != nil {
		return scope.Scope{}, malformed(err)
	}
	if err := checkEmoji(c.reaction.Emoji); err != nil {
		return scope.Scope{}, malformed(err)
	}
	m, err := s.chat.lookUp(r.Context(), r.PathValue("group"), c.reaction.Message)
	if errors.Is(err, errNoMessage) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return scope.Scope{}, err
	}
	return wanted(m.domain(), "reaction.write")
}

func (s *site) apiReact(w http.ResponseWriter, r *http.Request) {
	d, _ := authz.FromContext(r.Context())
	c := r.Context().Value(carriedKey{}).(*carried)
	m, err := s.reacted(r.Context(), d.Account, d.Domain.Root().ID(), c.reaction.Message, c.reaction.Emoji)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusCreated, s.forApp(d.App, m))
}
