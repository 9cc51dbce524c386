package cluster

import (
	"context"
	"fmt"
	"regexp"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	kjson "sigs.k8s.io/json"
)

// Group and version of weft's own kinds.
const (
	customGroup   = "weft.network"
	customVersion = "v1alpha1"
)

// absentBelieved is how long the server must say that a kind with objects does not exist until they count as gone. Whoever deletes a
// definition sees each of its objects deleted first; an answer "not found" to everything is that of something between us and the server.
const absentBelieved = 10 * time.Second

// customKind is one of weft's own kinds. All of them are cluster-scoped.
type customKind struct {
	plural, kind string
	read         reader
	store        func(o *objects, listed func()) cache.ReflectorStore
}

// customKinds is the table of weft's own kinds that a node wants: another one is a file with its newCustomKind, and a line here.
func customKinds(bgp, pools bool) []customKind {
	var all []customKind
	if bgp {
		all = append(all, bgpPeerKind)
	}
	if pools {
		all = append(all, poolKind)
	}
	return all
}

// custom is an object of one of weft's own kinds, with the spec S.
type custom[S any] struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   S   `json:"spec"`
	Status any `json:"status,omitempty"`
}

// newCustomKind describes a kind with the spec S that becomes a T of package model in a collection. resolve returns nil or errors
// for a spec that cannot be used.
func newCustomKind[S, T any](plural, kind string, resolve func(meta *metav1.ObjectMeta, spec *S) (*T, []fieldError),
	collect func(*objects) *collection[string, T],
) customKind {
	convert := func(raw []byte) (*custom[S], *T, []fieldError, error) {
		var o custom[S]
		strict, err := kjson.UnmarshalStrict(raw, &o)
		if err != nil {
			return nil, nil, nil, err
		}
		value, bad := resolve(&o.ObjectMeta, &o.Spec)
		if len(bad) > 0 {
			value = nil
		}
		for _, err := range strict {
			bad = append(bad, strictError(plural, err))
		}
		return &o, value, bad, nil
	}
	return customKind{
		plural: plural, kind: kind,
		read: func(raw []byte) (metav1.Object, any, []fieldError, error) {
			o, value, bad, err := convert(raw)
			if err != nil || value == nil {
				return o, nil, bad, err
			}
			return o, value, bad, nil
		},
		store: func(all *objects, listed func()) cache.ReflectorStore {
			return &feed[*unstructured.Unstructured, string, T]{
				name: kind, objects: all, collection: collect(all), key: nodeKey, listed: listed,
				convert: func(u *unstructured.Unstructured) (*T, []fieldError) {
					raw, err := u.MarshalJSON()
					if err != nil {
						return nil, []fieldError{{"", err}}
					}
					_, value, bad, err := convert(raw)
					if err != nil {
						return nil, []fieldError{decodeError(err)}
					}
					return value, bad
				},
			}
		},
	}
}

var strictField = regexp.MustCompile(`^(unknown|duplicate) field "(.*)"$`)

// strictError names a field that nobody reads: a misspelt one would otherwise be a wish without effect.
func strictError(plural string, err error) fieldError {
	found := strictField.FindStringSubmatch(err.Error())
	if found == nil {
		return fieldError{"", err}
	}
	return fieldError{found[2], fmt.Errorf("%s field (kubectl explain %s.spec shows all)", found[1], plural)}
}

// customKinds are the kinds to watch. A cluster without their definitions has no such objects, which is an answer like any other.
func (k *Kubernetes) customKinds(c dynamic.Interface) []kind {
	var all []kind
	for _, ck := range customKinds(k.options.BGP, k.options.Pools) {
		store := ck.store(k.objects, func() { k.listed(ck.plural) })
		var since, last time.Time // the server says that there is no such kind
		all = append(all, kind{
			name: ck.plural, example: customExample(ck.kind), client: dynamicLister{c.Resource(customResource(ck.plural))}, into: store,
			optional: true,
			absent: func(missing bool) error {
				if !missing {
					k.listed(ck.plural) // not allowed to know: go on with what is known
					return nil
				}
				now := time.Now()
				if now.Sub(last) > 4*backoffMost {
					since = now
				}
				last = now
				if now.Sub(since) < absentBelieved || !k.status.get(nil).Connected {
					k.listed(ck.plural) // go on with what is known, also from the store
					return nil
				}
				return store.Replace(nil, "")
			},
		})
	}
	return all
}

func customResource(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: customGroup, Version: customVersion, Resource: plural}
}

func customExample(kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(customGroup + "/" + customVersion)
	u.SetKind(kind)
	return u
}

// dynamicLister makes a lister of a client for one kind that client-go has no types for.
type dynamicLister struct{ client dynamic.ResourceInterface }

func (d dynamicLister) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return d.client.List(ctx, o)
}

func (d dynamicLister) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return d.client.Watch(ctx, o)
}
