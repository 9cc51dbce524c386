package cluster

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"weft.network/weft/appliance/model"
)

// DefaultSecretNamespace is where Secrets are read from unless the configuration says otherwise.
const DefaultSecretNamespace = metav1.NamespaceSystem

// Secrets are read by reference: each one that an object names has a watch of its own, restricted to that name, so that weft
// needs no right to see others.

func convertSecret(s *corev1.Secret) (*model.Secret, []fieldError) {
	out := &model.Secret{Namespace: s.Namespace, Name: s.Name, Data: maps.Clone(s.Data)}
	if len(s.StringData) > 0 && out.Data == nil {
		out.Data = map[string][]byte{}
	}
	for key, text := range s.StringData { // files have it; the API server turns it into data
		out.Data[key] = []byte(text)
	}
	return out, nil
}

func secretKey(m metav1.Object) model.SecretKey {
	return model.SecretKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

// referredSecrets returns the names of the Secrets that objects refer to, sorted.
func referredSecrets(peers map[string]*model.BGPPeer, more []string) []string {
	names := slices.Clone(more)
	for _, p := range peers {
		if p.PasswordSecret != nil {
			names = append(names, p.PasswordSecret.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (k *Kubernetes) referredSecrets() []string {
	k.objects.mu.Lock()
	defer k.objects.mu.Unlock()
	return referredSecrets(k.objects.bgpPeers.items, k.options.Secrets)
}

// ReferTo replaces the names of the Secrets that are read although no object of the cluster names them.
func (k *Kubernetes) ReferTo(names []string) {
	k.objects.mu.Lock()
	k.options.Secrets = names
	k.objects.mu.Unlock()
	select {
	case k.objects.refer <- struct{}{}:
	default:
	}
}

// ReferTo replaces the names of the Secrets that are read although no object of the files names them.
func (m *Manifests) ReferTo(names []string) {
	m.objects.mu.Lock()
	m.options.Secrets = names
	m.objects.mu.Unlock()
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// followSecrets watches the Secrets that objects refer to until the context ends.
func (k *Kubernetes) followSecrets(ctx context.Context, client kubernetes.Interface) {
	var watches sync.WaitGroup
	defer watches.Wait()
	running := map[string]func(){} // each ends a watch, and returns when it will not be heard of again
	for {
		wanted := k.referredSecrets()
		for _, name := range wanted {
			if running[name] == nil {
				one, cancel := context.WithCancel(ctx)
				reflector := k.reflector(k.secretKind(client, name), client)
				ended := make(chan struct{})
				watches.Go(func() {
					defer close(ended)
					reflector.RunWithContext(one)
				})
				running[name] = func() { cancel(); <-ended }
			}
		}
		for name, end := range running {
			if !slices.Contains(wanted, name) {
				end()
				delete(running, name)
				k.forgetSecret(name)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-k.objects.refer:
		}
	}
}

// secretKind watches one Secret.
func (k *Kubernetes) secretKind(c kubernetes.Interface, name string) kind {
	namespace := k.options.SecretNamespace
	answered := func() { k.secretAnswered(name) }
	store := &secretFeed{
		feed: feed[*corev1.Secret, model.SecretKey, model.Secret]{
			name: "Secret", objects: k.objects, collection: &k.objects.secrets, convert: convertSecret, key: secretKey, listed: answered,
		},
		secret: model.SecretKey{Namespace: namespace, Name: name},
	}
	return kind{
		name: "Secret " + namespace + "/" + name, example: &corev1.Secret{},
		client: typed[*corev1.SecretList]{c.CoreV1().Secrets(namespace)},
		only: func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		},
		into: store, optional: true,
		absent: func(bool) error { answered(); return nil },
	}
}

// secretFeed is the store of a reflector for one Secret: a list is about that one and leaves the others alone.
type secretFeed struct {
	feed[*corev1.Secret, model.SecretKey, model.Secret]
	secret model.SecretKey
}

// Replace implements cache.ReflectorStore.
func (f *secretFeed) Replace(list []any, _ string) error {
	for _, obj := range list {
		if err := f.Add(obj); err != nil {
			return err
		}
	}
	if len(list) == 0 {
		gone := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: f.secret.Namespace, Name: f.secret.Name}}
		if err := f.Delete(gone); err != nil {
			return err
		}
	}
	f.listed()
	return nil
}

// secretAnswered notes that it is known whether a Secret exists.
func (k *Kubernetes) secretAnswered(name string) {
	k.mu.Lock()
	first := !k.secretsSeen[name]
	k.secretsSeen[name] = true
	k.mu.Unlock()
	if first {
		k.objects.notify()
	}
}

// forgetSecret drops a Secret that nothing refers to any more.
func (k *Kubernetes) forgetSecret(name string) {
	k.mu.Lock()
	delete(k.secretsSeen, name)
	k.mu.Unlock()
	k.objects.mu.Lock()
	defer k.objects.mu.Unlock()
	k.objects.setProblems("Secret "+k.options.SecretNamespace+"/"+name, nil)
	if k.objects.secrets.remove(model.SecretKey{Namespace: k.options.SecretNamespace, Name: name}) {
		k.objects.touch()
	}
}

// allSecretsKnown reports whether each Secret was asked for that an object refers to. The first Snapshot waits for it: without
// the passwords that the last daemon had, sessions would end that should outlive a restart.
func (k *Kubernetes) allSecretsKnown() bool {
	wanted := k.referredSecrets()
	k.mu.Lock()
	defer k.mu.Unlock()
	return !slices.ContainsFunc(wanted, func(name string) bool { return !k.secretsSeen[name] })
}

// isAbsent reports whether the server has answered that there is no such thing, or that it is none of our business.
func isAbsent(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) ||
		err != nil && strings.Contains(err.Error(), "the server could not find the requested resource")
}
