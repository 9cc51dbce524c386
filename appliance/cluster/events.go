package cluster

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"weft.network/weft/appliance/model"
)

// events is the Recorder of the Kubernetes source. client-go aggregates repeated events and limits their rate.
type events struct {
	node string

	mu       sync.Mutex
	recorder record.EventRecorder // nil while there is no session
	// waiting are the newest events of the time without a session: what goes wrong at a start is said before the server is heard.
	waiting []waitingEvent
}

type waitingEvent struct {
	about                 *corev1.ObjectReference
	kind, reason, message string
}

// mostWaiting bounds the events that wait for a session.
const mostWaiting = 32

func newEvents(node string) *events { return &events{node: node} }

// start sends events through the client until the returned function is called.
func (e *events) start(ctx context.Context, client kubernetes.Interface) (stop func()) {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: client.CoreV1().Events("")})
	e.set(broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft", Host: e.node}))
	return func() {
		e.set(nil)
		broadcaster.Shutdown()
	}
}

func (e *events) set(r record.EventRecorder) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.recorder = r; r == nil {
		return
	}
	for _, w := range e.waiting {
		r.Event(w.about, w.kind, w.reason, w.message)
	}
	e.waiting = nil
}

// WarnPod implements Recorder.
func (e *events) WarnPod(pod model.PodRef, reason, message string) {
	e.event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
	}, true, reason, message)
}

// Service implements Recorder.
func (e *events) Service(key model.ServiceKey, uid string, warning bool, reason, message string) {
	e.event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: key.Namespace, Name: key.Name, UID: types.UID(uid),
	}, warning, reason, message)
}

// WarnNode implements Recorder. The UID of the reference is the node's name, as the kubelet has it and kubectl describe expects.
func (e *events) WarnNode(node, reason, message string) {
	e.event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)}, true, reason, message)
}

func (e *events) event(about *corev1.ObjectReference, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case about.Name == "":
	case e.recorder != nil:
		e.recorder.Event(about, kind, reason, message)
	default:
		e.waiting = append(e.waiting, waitingEvent{about, kind, reason, message})
		e.waiting = e.waiting[max(0, len(e.waiting)-mostWaiting):]
	}
}

// noEvents is the Recorder of a source that nobody looks at for events.
type noEvents struct{}

func (noEvents) WarnPod(model.PodRef, string, string)                   {}
func (noEvents) WarnNode(string, string, string)                        {}
func (noEvents) Service(model.ServiceKey, string, bool, string, string) {}
