package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/behest-go/behest/scope"
)

// Bounds on what people and apps can make this process keep.
const (
	maxText     = 4000 // characters
	maxMessages = 1000 // a group; older ones are forgotten
	maxThreads  = 50   // a group
	maxName     = 64   // bytes of a thread's id
	maxEmoji    = 32   // bytes
	maxEmojis   = 20   // different ones on a message
	maxActions  = 4    // on a card
)

// A user signs in without a password: this is a demo, on the loopback address only.
type user struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Hue  int    `json:"-"`
}

// Initials stand in the user's picture.
func (u user) Initials() string {
	var out []rune
	for word := range strings.FieldsSeq(u.Name) {
		r, _ := utf8.DecodeRuneInString(word)
		out = append(out, unicode.ToUpper(r))
	}
	return string(out[:min(2, len(out))])
}

type thread struct {
	ID    string `json:"id"`
	Title string `json:"title"`
}

// A message as it is listed.
type message struct {
	ID        string     `json:"id"`
	Account   string     `json:"account"`
	Via       string     `json:"via,omitempty"` // the app that posted it in the account's name
	Text      string     `json:"text"`
	Thread    string     `json:"thread,omitempty"`
	At        time.Time  `json:"at"`
	Card      *card      `json:"card,omitempty"`
	Reactions []reaction `json:"reactions,omitempty"`

	group string
	rev   int64 // of its last change
}

// domain is where the message really is: what an app asks about it is judged there.
func (m *message) domain() scope.Domain { return domainOf(m.group, m.Thread) }

type reaction struct {
	Emoji    string   `json:"emoji"`
	Accounts []string `json:"accounts"`
}

// A card is what only apps can post: a message with things to press.
type card struct {
	Title   string   `json:"title"`
	Text    string   `json:"text,omitempty"`
	Actions []action `json:"actions,omitempty"`
}

// An action of a card is a button, whose press the app is told of, or a link to the app.
type action struct {
	Label  string `json:"label"`
	Button string `json:"button,omitempty"`
	Value  string `json:"value,omitempty"` // goes with the press
	Link   string `json:"link,omitempty"`
}

// A draft is what somebody wants to post.
type draft struct {
	Text   string `json:"text"`
	Thread string `json:"thread"`
	Card   *card  `json:"card"`
}

func (d *draft) check() error {
	if strings.TrimSpace(d.Text) == "" {
		return problem(http.StatusUnprocessableEntity, "the text is empty")
	}
	if err := checkText("the text", d.Text, maxText); err != nil {
		return err
	}
	if d.Thread != "" && !validName(d.Thread) {
		return problem(http.StatusUnprocessableEntity, "a thread is 1 to 64 of A-Z a-z 0-9 . _ -")
	}
	if d.Card != nil {
		return d.Card.check()
	}
	return nil
}

func (c *card) check() error {
	if c.Title == "" || len(c.Actions) > maxActions {
		return problem(http.StatusUnprocessableEntity, "a card has a title and at most 4 actions")
	}
	for _, t := range []struct{ what, text string }{{"the card's title", c.Title}, {"the card's text", c.Text}} {
		if err := checkText(t.what, t.text, 500); err != nil {
			return err
		}
	}
	for _, a := range c.Actions {
		if a.Label == "" || (a.Button == "") == (a.Link == "") {
			return problem(http.StatusUnprocessableEntity, "an action has a label, and a button or a link")
		}
		for _, t := range []struct{ what, text string }{{"the label", a.Label}, {"the button", a.Button}, {"the value", a.Value}} {
			if err := checkText(t.what, t.text, 100); err != nil {
				return err
			}
		}
		if a.Link != "" && !webLink(a.Link) {
			return problem(http.StatusUnprocessableEntity, "a link is an http or https URL of at most 2000 bytes")
		}
	}
	return nil
}

// webLink keeps "javascript:" and its like out of pages and redirects.
func webLink(text string) bool {
	u, err := url.Parse(text)
	return err == nil && len(text) <= 2000 && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil
}

func checkText(what, text string, limit int) error {
	if utf8.RuneCountInString(text) > limit {
		return problem(http.StatusUnprocessableEntity, "%s is longer than %d characters", what, limit)
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && r != '\r' && unicode.IsControl(r) {
			return problem(http.StatusUnprocessableEntity, "%s has control characters", what)
		}
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// domainOf names a group, or a thread in it. Both ids are checked before: they always make a domain.
func domainOf(group, thread string) scope.Domain {
	d, err := scope.Domain{}.Child("group", group)
	if err == nil && thread != "" {
		d, err = d.Child("thread", thread)
	}
	if err != nil {
		return scope.Domain{} // allows nothing, and is in nothing
	}
	return d
}

type group struct {
	id, name, about, owner string
	members, muted         map[string]bool // muted outlasts leaving
	threads                []thread
	messages               []*message
}

// chat is the social server's own data: everything an ordinary one would keep in its database.
type chat struct {
	now     func() time.Time
	changed func() // told after every change, without the lock
	users   []user
	order   []string // of groups

	mu     sync.Mutex
	groups map[string]*group
	serial int   // of ids
	rev    int64 // counts changes
}

func newChat(now func() time.Time, changed func()) *chat {
	c := &chat{now: now, changed: changed,
		users: []user{{"zhang-san", "Zhang San", 0}, {"li-si", "Li Si", 1}, {"wang-wu", "Wang Wu", 2}, {"zhao-liu", "Zhao Liu", 3}},
		order: []string{"42", "7"},
	}
	c.groups = map[string]*group{
		"42": {id: "42", name: "Reading circle", about: "One book a month, tea every week", owner: "zhang-san",
			members: map[string]bool{"zhang-san": true, "li-si": true, "wang-wu": true, "zhao-liu": true},
			muted:   map[string]bool{},
			threads: []thread{{"t1", "Books for the winter"}, {"t2", "Where we meet"}}},
		"7": {id: "7", name: "Allotment", about: "Beds, seeds and the water rota", owner: "li-si",
			members: map[string]bool{"zhang-san": true, "li-si": true, "zhao-liu": true},
			muted:   map[string]bool{},
			threads: []thread{{"t1", "Water rota"}}},
	}
	return c
}

// seed gives the groups a past, so that the page does not begin empty. Nobody's operation, so nothing is emitted.
func (c *chat) seed() {
	now := c.now()
	for _, s := range []struct {
		ago                           time.Duration
		group, thread, account, words string
	}{
		{52 * time.Minute, "42", "", "li-si", "I finished the last one on the train. Who has the next?"},
		{49 * time.Minute, "42", "", "wang-wu", "Not yet decided. Something with weather in it, please."},
		{44 * time.Minute, "42", "t1", "zhao-liu", "Long evenings ahead. Thick books welcome here."},
		{31 * time.Minute, "42", "t2", "wang-wu", "The back room is ours on Thursdays."},
		{18 * time.Minute, "42", "", "zhao-liu", "A storm, then. And tea."},
		{26 * time.Minute, "7", "", "li-si", "Broad beans are in. Zhao Liu, the hose leaks again."},
		{9 * time.Minute, "7", "t1", "zhao-liu", "I take Tuesday and Saturday."},
	} {
		g := c.groups[s.group]
		c.serial++
		c.rev++
		g.messages = append(g.messages, &message{ID: fmt.Sprintf("m%d", c.serial), Account: s.account, Text: s.words,
			Thread: s.thread, At: now.Add(-s.ago), group: s.group, rev: c.rev})
	}
}

func (c *chat) user(id string) (user, bool) {
	i := slices.IndexFunc(c.users, func(u user) bool { return u.ID == id })
	if i < 0 {
		return user{}, false
	}
	return c.users[i], true
}

// newID names an operation that is not a message.
func (c *chat) newID(prefix string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	return fmt.Sprintf("%s%d", prefix, c.serial)
}

var (
	errNoGroup   = problem(http.StatusNotFound, "no such group")
	errNoMessage = problem(http.StatusNotFound, "no such message")
	errNoMember  = problem(http.StatusForbidden, "you are not a member of this group")
	errMuted     = problem(http.StatusForbidden, "you are muted in this group")
)

// member finds a group for one of its members. The lock is held.
func (c *chat) member(groupID, account string) (*group, error) {
	g := c.groups[groupID]
	if g == nil {
		return nil, errNoGroup
	}
	if !g.members[account] {
		return nil, errNoMember
	}
	return g, nil
}

// may is what Permit asks: may the account itself do this here, now?
func (c *chat) may(account, action string, where scope.Domain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if where.Root().Kind() != "group" {
		return errNoGroup
	}
	g, err := c.member(where.Root().ID(), account)
	if err != nil {
		return err
	}
	if strings.HasSuffix(action, ".write") && g.muted[account] {
		return errMuted
	}
	return nil
}

// post saves a message of the account, or of an app in its name.
func (c *chat) post(account, via, groupID string, d draft) (message, error) {
	if err := d.check(); err != nil {
		return message{}, err
	}
	c.mu.Lock()
	g, err := c.member(groupID, account)
	if err == nil && g.muted[account] {
		err = errMuted
	}
	if err == nil {
		err = g.open(d.Thread)
	}
	if err != nil {
		c.mu.Unlock()
		return message{}, err
	}
	c.serial++
	c.rev++
	m := &message{ID: fmt.Sprintf("m%d", c.serial), Account: account, Via: via, Text: d.Text, Thread: d.Thread, Card: d.Card,
		At: c.now().UTC().Truncate(time.Millisecond), group: groupID, rev: c.rev}
	if g.messages = append(g.messages, m); len(g.messages) > maxMessages {
		g.messages = slices.Delete(g.messages, 0, len(g.messages)-maxMessages)
	}
	out := m.copy()
	c.mu.Unlock()
	c.changed()
	return out, nil
}

// open makes a thread with its first message.
func (g *group) open(id string) error {
	if id == "" || slices.ContainsFunc(g.threads, func(t thread) bool { return t.ID == id }) {
		return nil
	}
	if len(g.threads) >= maxThreads {
		return problem(http.StatusConflict, "the group has %d threads, which is all it can have", maxThreads)
	}
	g.threads = append(g.threads, thread{id, strings.ReplaceAll(id, "-", " ")})
	return nil
}

// copy shares nothing that changes.
func (m *message) copy() message {
	out := *m
	out.Reactions = nil
	for _, r := range m.Reactions {
		out.Reactions = append(out.Reactions, reaction{r.Emoji, slices.Clone(r.Accounts)})
	}
	return out
}

// list returns a group's messages, or one thread's, to a member; oldest first.
func (c *chat) list(account, groupID, threadID string) ([]message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.member(groupID, account)
	if err != nil {
		return nil, err
	}
	out := []message{}
	for _, m := range g.messages {
		if threadID == "" || m.Thread == threadID {
			out = append(out, m.copy())
		}
	}
	return out, nil
}

// since returns what changed after a revision in the account's groups, and the revision that this is up to.
func (c *chat) since(account string, rev int64) ([]message, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev >= c.rev {
		return nil, c.rev
	}
	var out []message
	for _, id := range c.order {
		g := c.groups[id]
		if !g.members[account] {
			continue
		}
		for _, m := range g.messages {
			if m.rev > rev {
				out = append(out, m.copy())
			}
		}
	}
	slices.SortFunc(out, func(a, b message) int { return int(a.rev - b.rev) })
	return out, c.rev
}

func (c *chat) find(account, groupID, id string) (message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.member(groupID, account)
	if err != nil {
		return message{}, err
	}
	if m := g.find(id); m != nil {
		return m.copy(), nil
	}
	return message{}, errNoMessage
}

func (g *group) find(id string) *message {
	for _, m := range g.messages {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// where is the real domain of a message, whoever asks.
func (c *chat) where(groupID, id string) (scope.Domain, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[groupID]; g != nil {
		if m := g.find(id); m != nil {
			return m.domain(), true
		}
	}
	return scope.Domain{}, false
}

// react also says whether the reaction is new: to react again is no operation.
func (c *chat) react(account, groupID, id, emoji string) (out message, added bool, err error) {
	if err := checkEmoji(emoji); err != nil {
		return message{}, false, err
	}
	c.mu.Lock()
	g, err := c.member(groupID, account)
	if err == nil && g.muted[account] {
		err = errMuted
	}
	var m *message
	if err == nil {
		if m = g.find(id); m == nil {
			err = errNoMessage
		}
	}
	if err == nil {
		added, err = m.react(account, emoji)
	}
	if err != nil {
		c.mu.Unlock()
		return message{}, false, err
	}
	if added {
		c.rev++
		m.rev = c.rev
	}
	out = m.copy()
	c.mu.Unlock()
	if added {
		c.changed()
	}
	return out, added, nil
}

func checkEmoji(emoji string) error {
	if emoji == "" || len(emoji) > maxEmoji || strings.ContainsFunc(emoji, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return problem(http.StatusUnprocessableEntity, "an emoji has 1 to %d bytes and no spaces", maxEmoji)
	}
	return nil
}

func (m *message) react(account, emoji string) (added bool, err error) {
	for i := range m.Reactions {
		if r := &m.Reactions[i]; r.Emoji == emoji {
			if slices.Contains(r.Accounts, account) {
				return false, nil
			}
			r.Accounts = append(r.Accounts, account)
			return true, nil
		}
	}
	if len(m.Reactions) >= maxEmojis {
		return false, problem(http.StatusConflict, "the message has %d different reactions, which is all it can have", maxEmojis)
	}
	m.Reactions = append(m.Reactions, reaction{emoji, []string{account}})
	return true, nil
}

// members are sorted by the order in which users are known.
func (c *chat) members(account, groupID string) ([]member, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.member(groupID, account)
	if err != nil {
		return nil, err
	}
	var out []member
	for _, u := range c.users {
		if g.members[u.ID] {
			out = append(out, member{u, g.muted[u.ID], g.owner == u.ID})
		}
	}
	return out, nil
}

type member struct {
	user
	Muted, Owner bool
}

// join adds the account and reports whether it was new.
func (c *chat) join(account, groupID string) (bool, error) {
	c.mu.Lock()
	g := c.groups[groupID]
	if g == nil {
		c.mu.Unlock()
		return false, errNoGroup
	}
	there := g.members[account]
	g.members[account] = true
	c.mu.Unlock()
	c.changed()
	return !there, nil
}

func (c *chat) leave(account, groupID string) error {
	c.mu.Lock()
	g, err := c.member(groupID, account)
	if err == nil {
		delete(g.members, account)
	}
	c.mu.Unlock()
	c.changed()
	return err
}

// mute is for the group's owner: a muted member reads, and says nothing, through apps neither.
func (c *chat) mute(account, groupID, other string, muted bool) error {
	c.mu.Lock()
	g, err := c.member(groupID, account)
	if err == nil && g.owner != account {
		err = problem(http.StatusForbidden, "only the group's owner mutes")
	}
	if err == nil && !g.members[other] {
		err = problem(http.StatusNotFound, "no such member")
	}
	if err == nil {
		g.muted[other] = muted
	}
	c.mu.Unlock()
	c.changed()
	return err
}

// groupView is a group as a page or a file shows it.
type groupView struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	About   string   `json:"-"`
	Members []string `json:"members"`
	Threads []thread `json:"threads"`
	Member  bool     `json:"-"`
}

func (c *chat) views(account string) []groupView {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []groupView
	for _, id := range c.order {
		g := c.groups[id]
		v := groupView{ID: g.id, Name: g.name, About: g.about, Threads: slices.Clone(g.threads), Members: []string{}}
		for _, u := range c.users {
			if g.members[u.ID] {
				v.Members = append(v.Members, u.ID)
			}
		}
		v.Member = g.members[account]
		out = append(out, v)
	}
	return out
}

// mentions returns the ids of the apps that a text names, at most three, each once. "@BookBot," is bookbot;
// "mail@bookbot.example" and what is quoted with ">" name nobody. It is asked once, when the message is saved: never
// again, of whatever shows it.
func mentions(text string, apps map[string]string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimLeft(line, " "), ">") {
			continue
		}
		for at, r := range line {
			if r != '@' || at > 0 && wordByte(line[at-1]) {
				continue
			}
			end := at + 1
			for end < len(line) && wordByte(line[end]) {
				end++
			}
			name := strings.ToLower(line[at+1 : end])
			id, ok := apps[name]
			for !ok && name != strings.TrimRight(name, "._-") { // the full stop ends the sentence
				name = name[:len(name)-1]
				id, ok = apps[name]
			}
			if ok && !slices.Contains(out, id) {
				if out = append(out, id); len(out) == 3 {
					return out
				}
			}
		}
	}
	return out
}

func wordByte(b byte) bool {
	return b == '.' || b == '_' || b == '-' || '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// command returns "/book" of "/book a table", and nothing of a text that is no command.
func command(text string) string {
	if !strings.HasPrefix(text, "/") {
		return ""
	}
	word, _, _ := strings.Cut(text, " ")
	word, _, _ = strings.Cut(word, "\n")
	if name := strings.TrimPrefix(word, "/"); !validName(name) {
		return ""
	}
	return word
}
