/* The extension: PyInit of it, with the modules inside.

   LEVEL names the processors that it is for; EXTENSION is its name. */

#include "modules.h"

#define JOIN_OF(x, y) x##y
#define JOIN(x, y) JOIN_OF(x, y)

static PyModuleDef definition = MODULE(TEXT(EXTENSION), NULL);

EXPORT PyObject *JOIN(PyInit_, EXTENSION)(void) {
    PyObject *module = PyModule_Create2(&definition, PYTHON_API_VERSION);
    if (!module) return NULL;
    if (add(module, "float64", make_float64()) || add(module, "float32", make_float32()) ||
        add(module, "scheduling", make_scheduling()) ||
        PyModule_AddStringConstant(module, "LEVEL", TEXT(LEVEL))) {
        Py_DecRef(module);
        return NULL;
    }
    return module;
}
