package scope_test

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/behest-go/behest/scope"
)

func Example() {
	group := scope.MustDomain("group:42")
	thread, err := group.Child("thread", "7")
	if err != nil {
		panic(err)
	}
	wanted, err := scope.New(thread, "message.write")
	if err != nil {
		panic(err)
	}
	granted, err := scope.ParseSet("group:42/member.read group:42/message.write")
	if err != nil {
		panic(err)
	}
	fmt.Println(wanted, granted.Allows(wanted))
	fmt.Println(granted.Allows(scope.MustParse("group:43/message.write")))
	// Output:
	// group:42/thread:7/message.write <nil>
	// scope: wrong domain: "group:43/message.write" is not within "group:42/member.read group:42/message.write"
}

func ExampleParseDomain() {
	d, err := scope.ParseDomain("group:a%2fb/thread:%37")
	fmt.Println(d, err)
	fmt.Println(d.Kind(), d.ID(), d.Root().ID())
	_, err = scope.ParseDomain("group:a b")
	fmt.Println(errors.Is(err, scope.ErrSyntax))
	fmt.Println(err)
	// Output:
	// group:a%2Fb/thread:7 <nil>
	// thread 7 a/b
	// true
	// scope: invalid syntax: domain "group:a b": at offset 7: an id has byte 0x20 as %20
}

func ExampleDomain_Covers() {
	group := scope.MustDomain("group:4")
	for _, other := range []string{"group:4", "group:4/thread:7", "group:42"} {
		fmt.Println(other, group.Covers(scope.MustDomain(other)))
	}
	// Output:
	// group:4 true
	// group:4/thread:7 true
	// group:42 false
}

func ExampleDomain_Child() {
	group, _ := scope.Domain{}.Child("group", "42")
	thread, err := group.Child("thread", "news/2026")
	fmt.Println(thread, err)
	_, err = group.Child("thread", "")
	fmt.Println(err)
	// Output:
	// group:42/thread:news%2F2026 <nil>
	// scope: invalid syntax: id "": at offset 0: the id is empty
}

func ExampleDomain_Ancestor() {
	said := scope.MustDomain("group:42/thread:7/message:1")
	group, ok := said.Ancestor("group")
	fmt.Println(group, ok)
	// Output: group:42 true
}

func ExampleScope() {
	s := scope.MustParse("group:42/thread:7/message.write")
	fmt.Println(s.Domain(), s.Action())
	fmt.Println(scope.MustParse("group:42/message.write").Covers(s))
	fmt.Println(s == scope.MustParse("group:%34%32/thread:7/message.write"))
	// Output:
	// group:42/thread:7 message.write
	// true
	// true
}

func ExampleParseSet() {
	set, err := scope.ParseSet("group:42/message.write group:42/member.read group:42/message.write")
	fmt.Println(set, err)
	for s := range set.All() {
		fmt.Println(s.Action())
	}
	// Output:
	// group:42/member.read group:42/message.write <nil>
	// member.read
	// message.write
}

func ExampleSet_Allows() {
	set := scope.NewSet(scope.MustParse("group:42/message.write"))
	fmt.Println(set.Allows(scope.MustParse("group:42/thread:7/message.write")))
	err := set.Allows(scope.MustParse("group:42/member.read"))
	fmt.Println(errors.Is(err, scope.ErrWrongAction))
	err = set.Allows(scope.MustParse("group:43/message.write"))
	fmt.Println(errors.Is(err, scope.ErrWrongDomain))
	// Output:
	// <nil>
	// true
	// true
}

func ExampleSet_Narrow() {
	granted, _ := scope.ParseSet("group:42/member.read group:42/message.write")
	asked, _ := scope.ParseSet("group:42/thread:7/message.write")
	fmt.Println(granted.Narrow(asked))
	asked, _ = scope.ParseSet("group:42/message.write group:42/file.write")
	_, err := granted.Narrow(asked)
	fmt.Println(errors.Is(err, scope.ErrWiden))
	// Output:
	// group:42/thread:7/message.write <nil>
	// true
}

func ExamplePattern_Match() {
	p, _ := scope.ParsePattern("group:*")
	fmt.Println(p.Match(scope.MustDomain("group:42/thread:7")))
	fmt.Println(p.Match(scope.MustDomain("feed:42")))
	// Output:
	// <nil>
	// scope: wrong domain: not of the kind in the pattern
}

func ExamplePattern_Expand() {
	p, _ := scope.ParsePattern("group:{group}/message.write")
	path := map[string]string{"group": "42/thread:7"} // from a URL: it stays one id
	s, err := p.Expand(func(name string) (string, bool) { v, ok := path[name]; return v, ok })
	fmt.Println(s, err)
	// Output: group:42%2Fthread%3A7/message.write <nil>
}

func ExampleCatalog() {
	// What the server has of its own, and what most have.
	actions := []scope.Action{{
		Name:  "poll.vote",
		Words: map[string]string{"en": "Vote in your name", "zh": "以你的名义投票"},
		Risk:  scope.High,
		Cost:  2,
	}}
	builtIn := scope.BuiltIn()
	for _, name := range builtIn.Names() {
		a, _ := builtIn.Lookup(name)
		if a.Name == "member.read" {
			a.Cost = scope.Free
		}
		actions = append(actions, a)
	}
	catalog, err := scope.NewCatalog(actions...)
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"poll.vote", "message.write", "member.read"} {
		a, _ := catalog.Lookup(name)
		uses, _ := catalog.Cost(name)
		fmt.Println(name, a.Risk, uses, catalog.Words(name, "zh-CN"))
	}
	// Output:
	// poll.vote high 2 以你的名义投票
	// message.write medium 1 以你的名义发送消息
	// member.read low 0 查看成员名单
}

func ExampleNewCatalog() {
	_, err := scope.NewCatalog(
		scope.Action{Name: "Vote", Words: map[string]string{"en": "Vote"}},
		scope.Action{Name: "poll.close"},
	)
	fmt.Println(err)
	// Output:
	// scope: action 0: scope: invalid syntax: action "Vote": at offset 0: a word of an action begins with a-z, not with 'V'
	// scope: action 1 (poll.close): words: "en" is missing
}

func ExampleCheckAction() {
	fmt.Println(scope.CheckAction("message.write"))
	fmt.Println(scope.CheckAction("message/write"))
	// Output:
	// <nil>
	// scope: invalid syntax: action "message/write": at offset 7: an action has a-z, 0-9, "_", "-" and ".", not '/'
}

func ExampleSet_MarshalText() {
	type token struct {
		Scope  scope.Set    `json:"scope"`
		Domain scope.Domain `json:"domain,omitzero"`
	}
	var t token
	err := json.Unmarshal([]byte(`{"scope": "group:42/message.write group:42/member.read"}`), &t)
	if err != nil {
		panic(err)
	}
	text, err := json.Marshal(t)
	fmt.Println(string(text), err)
	fmt.Println(json.Unmarshal([]byte(`{"domain": "everywhere"}`), &t))
	// Output:
	// {"scope":"group:42/member.read group:42/message.write"} <nil>
	// scope: invalid syntax: domain "everywhere": at offset 10: a segment is kind:id, and the ":" is missing
}
